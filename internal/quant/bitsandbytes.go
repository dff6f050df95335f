package quant

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
)

// state is the JSON that bitsandbytes stores with a weight of 4 bits.
type state struct {
	Type       string   `json:"quant_type"`
	Size       int64    `json:"blocksize"`
	DType      string   `json:"dtype"`
	Shape      []uint64 `json:"shape"`
	NestedSize int64    `json:"nested_blocksize"`
	NestedType string   `json:"nested_dtype"`
	Offset     float64  `json:"nested_offset"`
}

// maxStateBytes bounds the text of a state.
const maxStateBytes = 4096

// bitsandbytes4 recognises NF4 and FP4 by the tensor that holds the state of a weight.
func (f *finder) bitsandbytes4(t *Tensor) error {
	name, kind, ok := strings.Cut(t.Name, ".quant_state.bitsandbytes__")
	if !ok {
		return nil
	}
	w := Weight{Name: name, Scheme: strings.ToUpper(kind) + " of bitsandbytes"}
	for _, tail := range []string{"", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"} {
		w.Parts = append(w.Parts, name+tail)
	}
	w.Beside = []string{t.Name}
	n, _ := dtype.NElements(t.Shape)
	if t.DType != dtype.U8 || n == 0 || n > maxStateBytes {
		f.refuse(w, fault.Corrupt, "%q holds the state of a weight in %v of shape %d, want up to %d bytes in U8", t.Name, t.DType, t.Shape, maxStateBytes)
		return nil
	}
	text, err := f.read(t.Name)
	if err != nil {
		return err
	}
	var s state
	if err := jsontext.Decode(text, &s); err != nil {
		f.refuse(w, fault.Corrupt, "%q holds the state of a weight, which is not valid: %v", t.Name, err)
		return nil
	}
	codec, problem := f.blockwise(&w, &s, kind)
	if problem != "" {
		f.refuse(w, fault.Mismatch, "%q is stored as %s, and %s", name, w.Scheme, problem)
		return nil
	}
	w.Shape, w.DType, w.Codec = s.Shape, ReadConfig(nil, s.DType).DType, codec
	if s.NestedSize > 0 {
		w.Scheme = strings.ToUpper(kind) + " of bitsandbytes with double quantisation"
	} else {
		w.Parts = w.Parts[:partNestedAbsmax]
	}
	f.add(w)
	return nil
}

// blockwise checks the tensors of a weight against its state. problem is a clause, "" for none.
func (f *finder) blockwise(w *Weight, s *state, kind string) (c *blockwise, problem string) {
	if problem := s.problem(kind); problem != "" {
		return nil, problem
	}
	codes := f.tensor(w.Parts[partCodes])
	if codes == nil {
		return nil, "its codes are missing"
	}
	n, _ := dtype.NElements(s.Shape)
	elements, _ := dtype.NElements(codes.Shape)
	if have, _ := codes.DType.NBytes(elements); uint64(have) != above(n, 2) {
		return nil, fmt.Sprintf("its codes have %d bytes, want %d for the shape %d", have, above(n, 2), s.Shape)
	}
	nBlocks := above(n, uint64(s.Size))
	absmax, nested := dtype.F32, uint64(0)
	if s.NestedSize > 0 {
		absmax, nested = dtype.U8, above(nBlocks, uint64(s.NestedSize))
	}
	for _, want := range []struct {
		part int
		d    dtype.Type
		n    uint64
	}{
		{partAbsmax, absmax, nBlocks}, {partMap, dtype.F32, 16}, {partNestedAbsmax, dtype.F32, nested}, {partNestedMap, dtype.F32, 256},
	} {
		if want.part >= partNestedAbsmax && s.NestedSize == 0 {
			break
		}
		t := f.tensor(w.Parts[want.part])
		if t == nil {
			return nil, fmt.Sprintf("%q is missing", w.Parts[want.part])
		}
		if n, _ := dtype.NElements(t.Shape); t.DType != want.d || n != want.n {
			return nil, fmt.Sprintf("%q has %s of %v, want %d of %v", t.Name, fault.Count(int64(n), "number"), t.DType, want.n, want.d)
		}
	}
	return &blockwise{size: s.Size, nestedSize: s.NestedSize, offset: float32(s.Offset)}, ""
}

// problem returns a clause about a state that no weight has, or "".
func (s *state) problem(kind string) string {
	n, ok := dtype.NElements(s.Shape)
	switch {
	case kind != "nf4" && kind != "fp4" || s.Type != kind:
		return fmt.Sprintf("its state says %q, want nf4 or fp4 as in the name of the state", s.Type)
	case !ok || n == 0 || len(s.Shape) == 0:
		return fmt.Sprintf("its state has the shape %d", s.Shape)
	case s.Size < 1 || s.Size > 1<<20 || s.NestedSize < 0 || s.NestedSize > 1<<20:
		return fmt.Sprintf("its state has blocks of %d and %d elements", s.Size, s.NestedSize)
	case ReadConfig(nil, s.DType).DType == dtype.Invalid:
		return fmt.Sprintf("its state has the dtype %q, want float16, bfloat16 or float32", s.DType)
	case s.NestedSize > 0 && s.NestedType != "" && s.NestedType != "float32":
		return fmt.Sprintf("its state has the nested dtype %q, want float32", s.NestedType)
	}
	return ""
}

// perByte is the float32 that bitsandbytes multiplies with in place of dividing by 127.
const perByte = 0x1.020408p-7

// bitsandbytes8 recognises INT8 by the absmax of the rows, SCB:
//
//	w[i][j] = RN64(q[i][j] · SCB[i] · RN32(1/127))
func (f *finder) bitsandbytes8(t *Tensor) error {
	module, ok := strings.CutSuffix(t.Name, ".SCB")
	if !ok {
		refuseWithoutSCB(f, t)
		return nil
	}
	w := Weight{Name: module + ".weight", Scheme: "INT8 of bitsandbytes", Parts: []string{module + ".weight", t.Name}, DType: f.config.dtypeOf(nil)}
	layout := module + ".weight_format"
	w.Beside = f.has(layout)
	codes := f.tensor(w.Name)
	switch {
	case codes == nil:
		f.refuse(w, fault.Mismatch, "%q has the scales of %q, which is missing", t.Name, w.Name)
		return nil
	case codes.DType != dtype.I8 || len(codes.Shape) != 2 || codes.Shape[0] == 0 || codes.Shape[1] == 0:
		f.refuse(w, fault.Mismatch, "%q is stored as %s in %v of shape %d, want a matrix of I8", w.Name, w.Scheme, codes.DType, codes.Shape)
		return nil
	case !f.is(t.Name, dtype.F32, codes.Shape[0]):
		f.refuse(w, fault.Mismatch, "%q is stored as %s of shape %d with scales of %v and shape %d, want F32 and %d", w.Name, w.Scheme, codes.Shape, t.DType, t.Shape, codes.Shape[:1])
		return nil
	}
	if ok, err := f.isInRows(w, layout); !ok || err != nil {
		return err
	}
	rows, cols := int64(codes.Shape[0]), int64(codes.Shape[1])
	w.IsRounded = true
	w.Shape, w.Codec = codes.Shape, &scaled{
		table: int8s[:], codes: dense(8, cols), rows: rows, cols: cols, scales: blocks(dtype.F32, rows, cols, 1, cols), factor: perByte,
	}
	f.add(w)
	return nil
}

// refuseWithoutSCB refuses codes of INT8 whose scales are missing.
func refuseWithoutSCB(f *finder, t *Tensor) {
	module, ok := strings.CutSuffix(t.Name, ".weight")
	if !ok || t.DType != dtype.I8 || f.tensor(module+".SCB") != nil {
		return
	}
	w := Weight{Name: t.Name, Scheme: "INT8 of bitsandbytes", Parts: append([]string{t.Name}, f.has(module+".weight_format")...)}
	if len(w.Parts) > 1 || f.config.Method == "bitsandbytes" {
		f.refuse(w, fault.Mismatch, "%q is stored as %s, and its scales %q are missing", t.Name, w.Scheme, module+".SCB")
	}
}

// isInRows reads weight_format, if there is one, and refuses a weight in another order than rows.
func (f *finder) isInRows(w Weight, layout string) (ok bool, err error) {
	t := f.tensor(layout)
	if t == nil {
		return true, nil
	}
	if n, _ := dtype.NElements(t.Shape); t.DType != dtype.U8 || n != 1 {
		f.refuse(w, fault.Mismatch, "%q has %v of shape %d, want one byte", layout, t.DType, t.Shape)
		return false, nil
	}
	text, err := f.read(layout)
	if err != nil {
		return false, err
	}
	if text[0] != 0 {
		f.refuse(w, fault.Unsupported, "%q is stored in the order of a graphics processor (%q is %d), want rows (0)", w.Name, layout, text[0])
		return false, nil
	}
	return true, nil
}
