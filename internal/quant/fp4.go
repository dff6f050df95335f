package quant

import (
	"context"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// findModelOpt recognises codes of FP4 in bytes whose scales are weight_scale: NVFP4 of ModelOpt,
// with scales of F8_E4M3 and a weight_scale_2 that multiplies, and MXFP4.
func findModelOpt(f *finder, t *Tensor) error {
	module, ok := strings.CutSuffix(t.Name, ".weight")
	if !ok || t.DType != dtype.U8 {
		return nil
	}
	scale := f.tensor(t.Name + "_scale")
	if scale == nil {
		return nil
	}
	w := Weight{Name: t.Name, Scheme: "NVFP4 of ModelOpt", Parts: []string{t.Name, scale.Name}, DType: f.config.dtypeOf(nil)}
	second := t.Name + "_scale_2"
	w.Beside = besideOf(f, module)
	if pre := f.has(module + ".pre_quant_scale"); len(pre) > 0 {
		w.Parts = append(w.Parts, pre...)
		f.refuse(w, fault.Unsupported, "%q is stored for activations that %q multiplies, which this version does not read", w.Name, pre[0])
		return nil
	}
	switch {
	case f.tensor(second) != nil:
		w.Parts = append(w.Parts, second)
		addNVFP4(f, w, false)
	case scale.DType == dtype.U8 || scale.DType == dtype.F8E8M0:
		addMicroscaling(f, w)
	case scale.DType == dtype.F8E4M3:
		f.refuse(w, fault.Mismatch, "%q is stored as NVFP4, and its second scale %q is missing", w.Name, second)
	}
	return nil
}

// groupNV is the number of elements that share a scale in NVFP4.
const groupNV = 16

// addNVFP4 adds a weight of NVFP4:
//
//	w[i][j] = q[i][j] · s[i][j/16] · s₂, or q[i][j] · s[i][j/16] / g
//
// The product is exact in float64, the quotient is rounded.
func addNVFP4(f *finder, w Weight, divides bool) {
	codes, scale, second := f.tensor(w.Parts[0]), f.tensor(w.Parts[1]), f.tensor(w.Parts[2])
	if len(codes.Shape) != 2 || codes.Shape[0] == 0 || codes.Shape[1] == 0 || codes.Shape[1] > 1<<40 {
		f.refuse(w, fault.Mismatch, "%q is stored as NVFP4 with codes of shape %d, want a matrix", w.Name, codes.Shape)
		return
	}
	rows, cols := codes.Shape[0], 2*codes.Shape[1]
	w.Shape = []uint64{rows, cols}
	n, _ := dtype.NElements(second.Shape)
	size := uint64(groupNV)
	want := []uint64{rows, above(cols, groupNV)}
	if f.is(scale.Name, dtype.F8E4M3, rows, above(cols, groupMX)) && !slices.Equal(scale.Shape, want) {
		size = groupMX // W4A8 of ModelOpt
	}
	switch {
	case size == groupNV && !f.is(scale.Name, dtype.F8E4M3, want...):
		f.refuse(w, fault.Mismatch, "%q is stored as NVFP4 of shape %d, with scales of %v and shape %d, want F8_E4M3 and %d; scales in another order (swizzled) are not read",
			w.Name, w.Shape, scale.DType, scale.Shape, want)
		return
	case second.DType != dtype.F32 || n != 1:
		f.refuse(w, fault.Mismatch, "%q has %v of shape %d, want one number of F32", second.Name, second.DType, second.Shape)
		return
	}
	w.IsRounded = divides
	f.add(w.with(&scaled{
		table: e2m1[:], codes: dense(4, int64(cols)), rows: int64(rows), cols: int64(cols),
		scales: blocks(dtype.F8E4M3, int64(rows), int64(cols), 1, int64(size)), whole: whole{2, divides},
	}))
}

// findModelOptExperts recognises the experts of Llama 4 and gpt-oss in NVFP4 of ModelOpt. The model
// has them as in×out, in a stack; ModelOpt quantises them out×in, and stores the codes and scales
// transposed, under the names of the parameters.
func findModelOptExperts(f *finder, t *Tensor) error {
	if t.DType != dtype.U8 || len(t.Shape) != 3 {
		return nil
	}
	scale, second := f.tensor(t.Name+"_weight_scale"), f.tensor(t.Name+"_weight_scale_2")
	if scale == nil || second == nil {
		return nil
	}
	w := Weight{
		Name: t.Name, Scheme: "NVFP4 of ModelOpt", Parts: []string{t.Name, scale.Name, second.Name}, Beside: f.has(t.Name + "_input_scale"), DType: f.config.dtypeOf(nil),
	}
	experts, in, out := t.Shape[0], 2*t.Shape[1], t.Shape[2]
	n, _ := dtype.NElements(second.Shape)
	switch {
	case slices.Contains(t.Shape, 0) || in > 1<<40 || out > 1<<40:
		f.refuse(w, fault.Mismatch, "%q is stored as NVFP4 with codes of shape %d, want [experts, inputs/2, outputs]", w.Name, t.Shape)
	case in%groupNV != 0 || !f.is(scale.Name, dtype.F8E4M3, experts, in/groupNV, out):
		f.refuse(w, fault.Mismatch, "%q is stored as NVFP4 with codes of shape %d and scales of %v and shape %d, want F8_E4M3 and %d",
			w.Name, t.Shape, scale.DType, scale.Shape, []uint64{experts, above(in, groupNV), out})
	case second.DType != dtype.F32 || n != 1 && n != experts:
		f.refuse(w, fault.Mismatch, "%q has %v of shape %d, want one number of F32, or one for each expert", second.Name, second.DType, second.Shape)
	default:
		w.Shape = []uint64{experts, in, out}
		f.add(w.with(&pairedRows{in: int64(in), out: int64(out), perScale: int64(in * out * experts / n)}))
	}
	return nil
}

// pairedRows is a stack of in×out matrices of FP4. A byte has the codes of two rows that follow
// each other, the first one in its low half:
//
//	w[e][i][o] = q[e][i][o] · s[e][i/16][o] · s₂
//
// Part 0 holds the codes, part 1 the scales, and part 2 a second scale for so many elements.
type pairedRows struct{ in, out, perScale int64 }

// Decode implements Codec.
func (p *pairedRows) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	for len(dst) > 0 {
		row, col := at/p.out, at%p.out // row counts on through all matrices
		n := min(int64(len(dst)), p.out-col, pieceElements)
		codes, scales := b.codesOf(n), b.scalesOf(n+4)
		if err := parts.ReadPart(ctx, codes, 0, row/2*p.out+col); err != nil {
			return err
		}
		if err := parts.ReadPart(ctx, scales[:n], 1, row/groupNV*p.out+col); err != nil {
			return err
		}
		if err := parts.ReadPart(ctx, scales[n:], 2, at/p.perScale*4); err != nil {
			return err
		}
		values := b.valuesOf(n)
		widen(values, dtype.F8E4M3, scales[:n])
		second, shift := dtype.Load(dtype.F32, scales[n:], 0), row%2*4
		for i, s := range values {
			dst[i] = e2m1[codes[i]>>shift&15] * s * second
		}
		dst, at = dst[n:], at+n
	}
	return nil
}

// addMicroscaling adds a weight of FP4 or FP6 with powers of two for 32 elements of a row. The
// width of the codes follows from the number of bytes.
func addMicroscaling(f *finder, w Weight) {
	codes, scale := f.tensor(w.Parts[0]), f.tensor(w.Parts[1])
	w.Scheme, w.DType = "MXFP4", f.config.dtypeOf(nil)
	s, bytes := scale.Shape, codes.Shape
	if len(bytes) != 2 || len(s) != 2 || bytes[0] == 0 || bytes[1] == 0 || s[1] == 0 || s[1] > 1<<40 || s[0] != bytes[0] ||
		scale.DType != dtype.U8 && scale.DType != dtype.F8E8M0 || bytes[1] != 16*s[1] && bytes[1] != 24*s[1] {
		f.refuse(w, fault.Mismatch, "%q is stored as MXFP4 or MXFP6 with codes of shape %d and scales of %v and shape %d, want U8 or F8_E8M0 for 16 or 24 bytes of a row; scales in another order (swizzled) are not read",
			w.Name, bytes, scale.DType, s)
		return
	}
	rows, cols := int64(bytes[0]), int64(groupMX*s[1])
	w.Shape = []uint64{bytes[0], groupMX * s[1]}
	c := &scaled{table: e2m1[:], codes: dense(4, cols), rows: rows, cols: cols, scales: blocks(dtype.F8E8M0, rows, cols, 1, groupMX)}
	if bytes[1] == 24*s[1] {
		w.Scheme, c.table, c.codes = "MXFP6", e2m3[:], dense(6, cols)
	}
	f.add(w.with(c))
}
