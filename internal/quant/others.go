package quant

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// other is a scheme that this version does not read. The name of one tensor of each weight ends
// with mark.
type other struct {
	mark   string
	scheme string
	// with is the end of the name of a tensor beside that one, "" for none, and dtypes those of the
	// two; Invalid is any.
	with   string
	dtypes [2]dtype.Type
	why    string // a clause after the name, "" for none
}

// otherSchemes are tried in this order.
var otherSchemes = []other{
	{mark: ".trellis", scheme: "EXL3"},
	{mark: ".q_weight", scheme: "EXL2"},
	{mark: ".codebooks", scheme: "AQLM"},
	{mark: ".centroids.weight", scheme: "VPTQ"},
	{mark: ".Qidxs", scheme: "QuIP#"},
	{mark: ".dense_weights", scheme: "SpQR"},
	{mark: ".B", scheme: "Marlin", with: ".s", dtypes: [2]dtype.Type{dtype.I32}},
	{mark: ".qzeros", scheme: "GPTQ or AWQ"},
	{mark: ".weight_packed", scheme: "Marlin of compressed-tensors", with: ".scale_packed"},
	{mark: ".weight.bitmask", scheme: "sparse weights of compressed-tensors"},
	{mark: ".weight", scheme: "INT4 of ModelOpt", with: ".weight_scale", dtypes: [2]dtype.Type{0: dtype.U8}},
	{mark: ".weight", scheme: "EETQ", with: ".weight_scales", dtypes: [2]dtype.Type{0: dtype.I8}, why: ", whose codes its kernels have put in the order of a graphics processor"},
	{mark: "._weight_qdata", scheme: "torchao"},
	{mark: ".weight_qdata", scheme: "torchao"},
	{mark: ".weight._data", scheme: "Quanto"},
	{mark: ".weight._data._data", scheme: "Quanto in 4 or 2 bits"},
}

// others refuses the weights of other schemes by name.
func (f *finder) others(t *Tensor) error {
	for i := range otherSchemes {
		o := &otherSchemes[i]
		module, ok := strings.CutSuffix(t.Name, o.mark)
		if !ok || !o.fits(t, 0) || o.with != "" && !o.fits(f.tensor(module+o.with), 1) {
			continue
		}
		w := Weight{Name: module + ".weight", Scheme: o.scheme}
		first, _ := slices.BinarySearchFunc(f.sorted, module+".", func(t listed, name string) int { return strings.Compare(t.Name, name) })
		for _, t := range f.sorted[first:] {
			if !strings.HasPrefix(t.Name, module+".") {
				break
			}
			if t.Name != module+".bias" && !t.claimed {
				w.Parts = append(w.Parts, t.Name)
			}
		}
		f.refuse(w, fault.Unsupported, "%q is stored as %s%s, which this version does not read", w.Name, o.scheme, o.why)
		return nil
	}
	return nil
}

// fits reports whether a tensor may be number i of the two that tell the scheme.
func (o *other) fits(t *Tensor, i int) bool {
	return t != nil && (o.dtypes[i] == dtype.Invalid || t.DType == o.dtypes[i])
}

// leftoverTails are the endings of the names of tensors that only quantised weights have.
var leftoverTails = []string{
	".weight_scale_inv", "_scale_inv", ".weight_scale", ".qscale_weight", ".weight_scale_2", ".weight_global_scale",
	".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".weight_format", "_scales",
}

// leftovers refuses the weights whose scales no codes belong to.
func (f *finder) leftovers(t *Tensor) error {
	for _, tail := range leftoverTails {
		name, ok := strings.CutSuffix(t.Name, tail)
		if !ok || tail == "_scales" && (t.DType != dtype.U8 || len(t.Shape) != 3) {
			continue
		}
		if strings.HasPrefix(tail, ".weight") || tail == ".qscale_weight" {
			name += ".weight"
		}
		if n := len(f.found.Refused); n > 0 && f.found.Refused[n-1].Name == name {
			f.found.Refused[n-1].Parts = append(f.found.Refused[n-1].Parts, t.Name)
			return nil
		}
		w := Weight{Name: name, Scheme: "unknown", Parts: []string{t.Name}}
		switch weight := f.tensor(name); {
		case weight == nil:
			f.refuse(w, fault.Mismatch, "%q belongs to quantised codes, which the checkpoint lacks", t.Name)
		case weight.DType.IsFloat():
			f.refuse(w, fault.Unsupported, "%q belongs to quantised codes, and %q does not fit it", t.Name, name)
		default:
			f.refuse(w, fault.Mismatch, "%q belongs to quantised codes, and %q does not fit it", t.Name, name)
		}
		return nil
	}
	return nil
}
