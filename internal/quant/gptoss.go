package quant

import (
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// gptOSS recognises the experts of gpt-oss in MXFP4: codes of shape [experts, out, in/32, 16] and
// scales of shape [experts, out, in/32]. The weight is [experts, in, out], as transformers has it
// and stores it in BF16, without .weight in its name.
func (f *finder) gptOSS(t *Tensor) error {
	name, ok := strings.CutSuffix(t.Name, "_blocks")
	if !ok || t.DType != dtype.U8 {
		return nil
	}
	w := Weight{Name: name, Scheme: "MXFP4", Parts: []string{t.Name, name + "_scales"}, DType: f.config.dtypeOf(nil)}
	scale := f.tensor(w.Parts[1])
	s := t.Shape
	switch {
	case scale == nil:
		f.refuse(w, fault.Mismatch, "%q is stored as MXFP4, and its scales %q are missing", name, w.Parts[1])
	case len(s) != 4 || s[3] != groupMX/2 || s[0] == 0 || s[1] == 0 || s[2] == 0:
		f.refuse(w, fault.Mismatch, "%q is stored as MXFP4 with codes of shape %d, want [experts, outputs, inputs/32, 16]", name, s)
	case !f.is(scale.Name, dtype.U8, s[0], s[1], s[2]) && !f.is(scale.Name, dtype.F8E8M0, s[0], s[1], s[2]):
		f.refuse(w, fault.Mismatch, "%q is stored as MXFP4 with codes of shape %d and scales of %v and shape %d, want U8 and %d", name, s, scale.DType, scale.Shape, s[:3])
	default:
		out, in := s[1], s[2]*groupMX
		w.Shape = []uint64{s[0], in, out}
		w.Codec = &turned{scaled{
			table: e2m1[:], codes: dense(4, int64(in)), rows: int64(out), cols: int64(in), scales: blocks(dtype.F8E8M0, int64(out), int64(in), 1, groupMX),
		}}
		f.add(w)
	}
	return nil
}
