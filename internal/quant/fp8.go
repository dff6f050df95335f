package quant

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// fp8 recognises codes of F8_E4M3 and the tensor with their scales. All scales multiply, also those
// that are called weight_scale_inv.
func (f *finder) fp8(t *Tensor) error {
	switch t.DType {
	case dtype.F8E4M3FNUZ, dtype.F8E5M2FNUZ:
		f.refuse(Weight{Name: t.Name, Scheme: "FP8 FNUZ", Parts: []string{t.Name}}, fault.Unsupported,
			"%q is stored as %v, an older code of AMD whose values are half of F8_E4M3's", t.Name, t.DType)
		return nil
	case dtype.F8E4M3:
	default:
		return nil
	}
	scales := f.scalesOf(t)
	if len(scales) == 0 && !f.hasScales() {
		return nil // the values are the codes
	}
	w := Weight{Name: t.Name, Scheme: "FP8", Shape: t.Shape, Parts: append([]string{t.Name}, scales...)}
	for _, ending := range f.beside {
		w.Beside = append(w.Beside, f.has(module(t.Name)+"."+ending, t.Name+"_"+ending)...)
	}
	switch {
	case len(scales) == 0:
		f.refuse(w, fault.Mismatch, "%q is stored as FP8, and its scales are missing", t.Name)
	case len(scales) > 1:
		f.refuse(w, fault.Mismatch, "%q is stored as FP8 and has two sets of scales, %q and %q", t.Name, scales[0], scales[1])
	case optional(f, t.Name, "_zero_point") != nil:
		f.refuse(w, fault.Unsupported, "%q is stored as FP8 with zero points, which this version does not read", t.Name)
	default:
		f.addFP8(w, f.tensor(scales[0]))
	}
	return nil
}

// addFP8 adds a weight with its scales.
func (f *finder) addFP8(w Weight, scale *Tensor) {
	s, scheme, problem := f.gridOf(w.Shape, scale)
	if problem != "" {
		f.refuse(w, fault.Mismatch, "%q is stored as FP8 of shape %d, with scales of %v and shape %d, want %s", w.Name, w.Shape, scale.DType, scale.Shape, problem)
		return
	}
	s.table = e4m3[:]
	w.Scheme, w.DType, w.Codec = scheme, f.config.dtypeOf(scale), s
	f.add(w)
}

// scalesOf returns the names of the tensors that hold scales of FP8 codes.
func (f *finder) scalesOf(t *Tensor) (found []string) {
	add := func(s *Tensor) {
		if s != nil {
			found = append(found, s.Name)
		}
	}
	add(optional(f, t.Name, "_scale_inv"))
	add(optional(f, t.Name, "_scale"))
	if module := module(t.Name); module != t.Name {
		add(optional(f, module, ".qscale_weight"))
		// Norms also call their weight so.
		if s := optional(f, module, ".scale"); s != nil {
			if _, _, problem := f.gridOf(t.Shape, s); problem == "" {
				add(s)
			}
		}
	}
	return found
}

// hasScales reports whether any FP8 tensor has scales. Some image models are cast to FP8 without.
func (f *finder) hasScales() bool {
	if f.isScaled == nil {
		found := slices.ContainsFunc(f.sorted, func(t listed) bool {
			return t.DType == dtype.F8E4M3 && len(f.scalesOf(t.Tensor)) > 0
		})
		f.isScaled = &found
	}
	return *f.isScaled
}

// groupMX is the number of elements that share a scale in the formats of OCP's Microscaling.
const groupMX = 32

// gridOf returns how scales of a shape belong to a weight, and the name of the scheme. problem says
// which scales would fit if these do not.
func (f *finder) gridOf(shape []uint64, scale *Tensor) (s *scaled, scheme, problem string) {
	d := scale.DType
	switch d {
	case dtype.U8:
		d = dtype.F8E8M0 // never a number
	case dtype.F32, dtype.BF16, dtype.F16, dtype.F8E8M0:
	default:
		return nil, "", "scales of F32, F16, BF16, F8_E8M0 or U8"
	}
	n, _ := dtype.NElements(shape)
	if len(shape) == 0 || len(shape) > 3 || n == 0 {
		return nil, "", "a matrix, or one for each expert, of at least one element"
	}
	t := stack{d: d, experts: 1, rows: 1, cols: shape[len(shape)-1], scales: scale.Shape}
	if len(shape) > 1 {
		t.rows = shape[len(shape)-2]
	}
	if len(shape) == 3 {
		t.experts, t.lead = shape[0], shape[:1]
	}
	nScales, _ := dtype.NElements(scale.Shape)
	switch {
	case nScales == 1:
		t.rows *= t.experts
		return t.fit(t.rows, t.cols), "FP8 with one scale", ""
	case d == dtype.F8E8M0 && t.cols%groupMX == 0 && t.is(t.rows, t.cols/groupMX):
		return t.fit(1, groupMX), "MXFP8", ""
	case d == dtype.F8E8M0 && len(scale.Shape) == 1:
		return nil, "", fmt.Sprintf("shape %d; scales in another order (swizzled) are not read", []uint64{t.rows, above(t.cols, groupMX)})
	case len(shape) == 3:
		if s := f.ofExperts(&t); s != nil {
			return s, "FP8 with a scale per channel", ""
		}
	case t.is(t.rows, 1) || t.is(t.rows):
		return t.fit(1, t.cols), "FP8 with a scale per row", ""
	}
	return f.inBlocks(&t)
}

// stack is a weight and the shape of its scales.
type stack struct {
	d                   dtype.Type // of the scales
	experts, rows, cols uint64
	lead                []uint64 // of the shape of a stack; empty for a matrix
	scales              []uint64
}

// fit returns the codec of a weight with a scale for each block.
func (t *stack) fit(height, width uint64) *scaled {
	return &scaled{codes: dense(8, int64(t.cols)), rows: int64(t.rows), cols: int64(t.cols), scales: blocks(t.d, int64(t.rows), int64(t.cols), int64(height), int64(width))}
}

// is reports whether the scales have a shape, that of each expert if there are several.
func (t *stack) is(want ...uint64) bool {
	n := len(t.lead)
	return len(t.scales) == n+len(want) && slices.Equal(t.scales[:n], t.lead) && slices.Equal(t.scales[n:], want)
}

// inBlocks is gridOf for blocks of the configured sizes, or of 128×128.
func (f *finder) inBlocks(t *stack) (s *scaled, scheme, problem string) {
	sizes := f.config.Blocks
	if len(sizes) == 0 {
		sizes = [][2]uint64{{128, 128}}
	}
	var wants []string
	for _, b := range sizes {
		down, across := above(t.rows, b[0]), above(t.cols, b[1])
		if t.is(down, across) {
			if f.inBlocksOf != b {
				f.inBlocksOf, f.schemeOfBlocks = b, fmt.Sprintf("FP8 in blocks of %d×%d", b[0], b[1])
			}
			return t.fit(b[0], b[1]), f.schemeOfBlocks, ""
		}
		wants = append(wants, fmt.Sprintf("%d for blocks of %d×%d", append(slices.Clip(t.lead), down, across), b[0], b[1]))
	}
	return nil, "", strings.Join(wants, " or ")
}

// ofExperts is gridOf for scales that belong to the experts of a stack, or to their channels; nil
// if they do not. The scales of fbgemm's down_proj have the shape [experts, columns, 1], as if they
// belonged to rows. For square experts only the configuration tells.
func (f *finder) ofExperts(t *stack) *scaled {
	isFBGEMM := f.config.Method == "fbgemm_fp8"
	isSquare := t.rows == t.cols
	switch {
	case t.is(), t.is(1), t.is(1, 1):
		return t.fit(t.rows, t.cols)
	case t.is(1, t.cols), t.is(t.cols, 1) && (isFBGEMM || !isSquare):
		return t.fit(t.rows, 1)
	case t.is(t.rows), t.is(t.rows, 1) && (!isSquare || f.config.Method != ""):
		return t.fit(1, t.cols)
	}
	return nil
}

// deepSeekV4 recognises the experts of DeepSeek-V4: bytes of I8 with two codes of FP4 each, and a
// scale of F8_E8M0 for 32 of them.
func (f *finder) deepSeekV4(t *Tensor) error {
	if t.DType != dtype.I8 || len(t.Shape) != 2 || t.Shape[0] == 0 || t.Shape[1] == 0 {
		return nil
	}
	name := module(t.Name) + ".scale"
	rows, cols := t.Shape[0], 2*t.Shape[1]
	scale := f.tensor(name)
	if scale == nil || scale.DType != dtype.F8E8M0 || cols%groupMX != 0 {
		return nil
	}
	w := Weight{Name: t.Name, Scheme: "MXFP4", Shape: []uint64{rows, cols}, Parts: []string{t.Name, name}, DType: f.config.dtypeOf(nil)}
	if !f.is(name, dtype.F8E8M0, rows, cols/groupMX) {
		f.refuse(w, fault.Mismatch, "%q is stored as MXFP4 of shape %d, with scales of shape %d, want %d", t.Name, w.Shape, scale.Shape, []uint64{rows, cols / groupMX})
		return nil
	}
	w.Codec = &scaled{table: e2m1[:], codes: dense(4, int64(cols)), rows: int64(rows), cols: int64(cols), scales: blocks(dtype.F8E8M0, int64(rows), int64(cols), 1, groupMX)}
	f.add(w)
	return nil
}
