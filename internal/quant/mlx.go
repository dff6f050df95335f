package quant

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// findMLX recognises the weights of MLX by their codes in U32, and scales beside them. Biases tell
// the affine mode, for which config.json has the number of bits and the size of a group, and scales
// in U8 tell the others.
func findMLX(f *finder, t *Tensor) error {
	module, ok := strings.CutSuffix(t.Name, ".weight")
	if !ok || t.DType != dtype.U32 || f.tensor(module+".scales") == nil {
		return nil
	}
	w := Weight{Name: t.Name, Scheme: "MLX", Parts: append([]string{t.Name, module + ".scales"}, f.has(module+".biases")...)}
	w.Beside = f.has(module + ".global_scale")
	scales := f.tensor(w.Parts[1])
	dims := len(t.Shape)
	switch {
	case dims < 2 || dims > 3 || slices.Contains(t.Shape, 0):
		f.refuse(w, fault.Mismatch, "%q is stored as MLX with codes of shape %d, want a matrix of words, or one for each expert", t.Name, t.Shape)
		return nil
	case len(scales.Shape) != dims || !slices.Equal(scales.Shape[:dims-1], t.Shape[:dims-1]) || scales.Shape[dims-1] == 0 || scales.Shape[dims-1] > 1<<40 || t.Shape[dims-1] > 1<<40:
		f.refuse(w, fault.Mismatch, "%q is stored as MLX with codes of shape %d and scales of shape %d, want the same rows", t.Name, t.Shape, scales.Shape)
		return nil
	}
	problem := ""
	if scales.DType == dtype.U8 {
		problem = floatsOfMLX(f, &w, t, scales)
	} else {
		problem = affineOfMLX(f, &w, t, scales)
	}
	if problem != "" {
		f.refuse(w, fault.Mismatch, "%q is stored as %s with codes of shape %d and scales of %v and shape %d, and %s", t.Name, w.Scheme, t.Shape, scales.DType, scales.Shape, problem)
		return nil
	}
	f.add(w)
	return nil
}

// floatsOfMLX recognises the modes whose codes are floating-point numbers. Each has its own number
// of bits for a scale.
func floatsOfMLX(f *finder, w *Weight, t, scales *Tensor) (problem string) {
	const group16 = 16
	words, groups := t.Shape[len(t.Shape)-1], scales.Shape[len(t.Shape)-1]
	var s scaled
	var group uint64
	mode := ""
	switch 32 * words {
	case 4 * groupMX * groups:
		w.Scheme, mode, group, s = "MXFP4", "mxfp4", groupMX, scaled{table: e2m1[:], scales: grid{dtype: dtype.F8E8M0}}
	case 8 * groupMX * groups:
		w.Scheme, mode, group, s = "MXFP8", "mxfp8", groupMX, scaled{table: e4m3[:], scales: grid{dtype: dtype.F8E8M0}}
	case 4 * group16 * groups:
		w.Scheme, mode, group, s = "NVFP4 of MLX", "nvfp4", group16, scaled{table: e2m1[:], scales: grid{dtype: dtype.F8E4M3}}
	default:
		return "want 32 bits of codes to a scale for nvfp4, 128 for mxfp4, or 256 for mxfp8"
	}
	switch g := f.config.groupOfModule(module(t.Name)); {
	case len(w.Parts) > 2:
		return "biases, which only the affine mode has"
	case len(w.Beside) > 0:
		return "a global scale, which this version does not read"
	case g.Mode != "" && g.Mode != mode:
		return fmt.Sprintf("config.json says the mode %q, want %s for these shapes", g.Mode, mode)
	}
	rows, cols := int64(1), groups*group
	for _, n := range t.Shape[:len(t.Shape)-1] {
		rows *= int64(n)
	}
	s.codes = dense(int64(32*words/cols), int64(cols))
	s.rows, s.cols, s.scales = rows, int64(cols), blocks(s.scales.dtype, rows, int64(cols), 1, int64(group))
	w.Shape = append(slices.Clone(t.Shape[:len(t.Shape)-1]), cols)
	w.DType, w.Codec = f.config.dtypeOf(nil), &s
	return ""
}

// affineOfMLX recognises the mode with a scale and a bias for each group.
func affineOfMLX(f *finder, w *Weight, t, scales *Tensor) (problem string) {
	words, groups := t.Shape[len(t.Shape)-1], scales.Shape[len(t.Shape)-1]
	g := f.config.groupOfModule(module(t.Name))
	switch {
	case !slices.Contains([]dtype.Type{dtype.F16, dtype.BF16, dtype.F32}, scales.DType):
		return "want scales of F16, BF16, F32 or U8"
	case len(w.Parts) < 3:
		return fmt.Sprintf("its biases %q are missing", module(t.Name)+".biases")
	case !f.is(w.Parts[2], scales.DType, scales.Shape...):
		return fmt.Sprintf("%q is %v of shape %d, want those of the scales", w.Parts[2], f.tensor(w.Parts[2]).DType, f.tensor(w.Parts[2]).Shape)
	case g.Mode != "" && g.Mode != "affine":
		return fmt.Sprintf("config.json says the mode %q, want affine", g.Mode)
	case g.Bits == 0 || g.Size == 0:
		return "config.json does not say bits and group_size under quantization; put it beside the weights"
	case g.Bits < 1 || g.Bits > 8 || g.Size < 1 || g.Size > 1<<20:
		return fmt.Sprintf("config.json says %d bits in groups of %d, want 1 to 8 bits", g.Bits, g.Size)
	case 32*words != uint64(g.Bits)*uint64(g.Size)*groups:
		return fmt.Sprintf("config.json says %d bits in groups of %d: want codes of %d words a row", g.Bits, g.Size, uint64(g.Bits)*uint64(g.Size)*groups/32)
	}
	w.Scheme = fmt.Sprintf("MLX in %s and groups of %d", fault.Count(g.Bits, "bit"), g.Size)
	w.Shape = append(slices.Clone(t.Shape[:len(t.Shape)-1]), groups*uint64(g.Size))
	w.DType = scales.DType
	w.Codec = &grouped{codes: stream{packing{bits: g.Bits}}, size: g.Size, dtype: scales.DType}
	return ""
}
