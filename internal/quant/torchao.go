package quant

import (
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// findTorchAO recognises Int8Tensor, IntxUnpackedToInt8Tensor and Float8Tensor of torchao: codes of
// I8 or F8_E4M3, a scale for each row, group or weight, and possibly zero points of I8. Its tensors
// of 4 bits, in the order of graphics processors, have other dtypes.
func findTorchAO(f *finder, t *Tensor) error {
	module, ok := strings.CutSuffix(t.Name, "._weight_qdata")
	if !ok || t.DType != dtype.I8 && t.DType != dtype.F8E4M3 {
		return nil
	}
	prefix := module + "._weight_"
	w := Weight{Name: module + ".weight", Scheme: "INT8 of torchao", Shape: t.Shape, Parts: []string{t.Name, prefix + "scale"}}
	scale, zeros := f.tensor(w.Parts[1]), f.tensor(prefix+"zero_point")
	w.DType = f.config.dtypeOf(nil)
	w.Beside = f.has(prefix+"act_quant_scale", prefix+"act_quant_zero_point")
	if t.DType == dtype.F8E4M3 {
		w.Scheme = "FP8 of torchao"
	}
	switch pre := f.has(prefix + "act_pre_scale"); {
	case scale == nil:
		f.refuse(w, fault.Mismatch, "%q is stored as %s, and its scales %q are missing", w.Name, w.Scheme, w.Parts[1])
	case len(pre) > 0:
		w.Parts = append(w.Parts, pre...)
		f.refuse(w, fault.Unsupported, "%q is stored for activations that %q multiplies, which this version does not read", w.Name, pre[0])
	case zeros != nil && zeros.DType != dtype.I8:
		return nil // an Int4Tensor
	case t.DType == dtype.F8E4M3:
		f.addFP8(w, scale)
	default:
		addInt8(f, w, scale, prefix+"zero_point")
	}
	return nil
}

// findQuanto recognises the weights of 8 bits of Quanto: codes of I8 or F8_E4M3, and a scale for
// each row.
func findQuanto(f *finder, t *Tensor) error {
	name, ok := strings.CutSuffix(t.Name, "._data")
	if !ok || t.DType != dtype.I8 && t.DType != dtype.F8E4M3 {
		return nil
	}
	scale := f.tensor(name + "._scale")
	if scale == nil {
		return nil
	}
	w := Weight{Name: name, Scheme: "INT8 of Quanto", Shape: t.Shape, Parts: []string{t.Name, scale.Name}, DType: f.config.dtypeOf(scale)}
	w.Beside = besideOf(f, module(name))
	if t.DType == dtype.F8E4M3 {
		w.Scheme = "FP8 of Quanto"
		f.addFP8(w, scale)
		return nil
	}
	addInt8(f, w, scale, "")
	return nil
}
