package quant

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// packingsHQQ are the ways to pack codes in words: those of the first rows into the highest bits.
var packingsHQQ = map[int64]bands{
	8: {bits: 8, top: 0, wordBytes: 1}, 4: {bits: 4, top: 4, wordBytes: 1}, 3: {bits: 3, top: 27, wordBytes: 4},
	2: {bits: 2, top: 6, wordBytes: 1}, 1: {bits: 1, top: 7, wordBytes: 1},
}

// besideHQQ are the facts of a weight that HQQ stores as tensors, beside those that are read.
var besideHQQ = []string{
	"nbits", "group_size", "axis", "shape", "packing", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero", "compute_dtype",
	"offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero",
}

// findHQQ recognises the weights of HQQ. The weight in one row is cut into groups: each is a row of
// a matrix (axis 1) or a column (axis 0), and a word holds codes of rows from several bands of it.
func findHQQ(f *finder, t *Tensor) error {
	module, ok := strings.CutSuffix(t.Name, ".W_q")
	if !ok {
		return nil
	}
	w := Weight{Name: module + ".weight", Scheme: "HQQ", Parts: []string{t.Name, module + ".scale", module + ".zero"}}
	for _, name := range besideHQQ {
		w.Beside = append(w.Beside, f.has(module+"."+name)...)
	}
	h, err := factsOfHQQ(f, module)
	if err != nil {
		return err
	}
	codec, kind, problem := groupsOfHQQ(f, &w, t, h)
	if problem != "" {
		f.refuse(w, kind, "%q is stored as HQQ, and %s", w.Name, problem)
		return nil
	}
	w.Scheme = "HQQ in " + fault.Count(h.bits, "bit")
	w.Shape, w.DType, w.Codec = h.shape, f.tensor(w.Parts[1]).DType, codec
	f.add(w)
	return nil
}

// factsHQQ is what HQQ stores beside a weight, or what the configuration says of all.
type factsHQQ struct {
	bits, size, axis int64
	shape            []uint64
	isQuantised      bool // scales or zeros are quantised themselves
}

// factsOfHQQ reads the small tensors beside a weight.
func factsOfHQQ(f *finder, module string) (h factsHQQ, err error) {
	c := &f.config
	h = factsHQQ{bits: c.HQQ.Bits, size: c.HQQ.Size, axis: 1, shape: c.Shape}
	if c.HQQ.Axis != nil {
		h.axis = *c.HQQ.Axis
	}
	for _, fact := range []struct {
		name string
		to   *int64
	}{{"nbits", &h.bits}, {"group_size", &h.size}, {"axis", &h.axis}} {
		if err := readNumber(f, module+"."+fact.name, fact.to); err != nil {
			return h, err
		}
	}
	for _, name := range []string{"quant_scale", "quant_zero"} {
		var is int64
		if err := readNumber(f, module+"."+name, &is); err != nil {
			return h, err
		}
		h.isQuantised = h.isQuantised || is != 0
	}
	shape, err := readNumbers(f, module+".shape", 2)
	if len(shape) == 2 {
		h.shape = []uint64{uint64(shape[0]), uint64(shape[1])}
	}
	return h, err
}

// readNumber sets *to to the one number of a tensor, if that exists.
func readNumber(f *finder, name string, to *int64) error {
	numbers, err := readNumbers(f, name, 1)
	if len(numbers) == 1 {
		*to = numbers[0]
	}
	return err
}

// readNumbers reads up to max whole numbers of a tensor, or none.
func readNumbers(f *finder, name string, max uint64) (all []int64, err error) {
	t := f.tensor(name)
	if t == nil {
		return nil, nil
	}
	n, ok := dtype.NElements(t.Shape)
	if !ok || n == 0 || n > max {
		return nil, nil
	}
	raw, err := f.read(name)
	if err != nil {
		return nil, err
	}
	for i := range n {
		switch t.DType {
		case dtype.U8, dtype.BOOL:
			all = append(all, int64(raw[i]))
		case dtype.I32:
			all = append(all, int64(int32(binary.LittleEndian.Uint32(raw[4*i:]))))
		case dtype.I64:
			all = append(all, int64(binary.LittleEndian.Uint64(raw[8*i:])))
		default:
			return nil, nil
		}
	}
	return all, nil
}

// groupsOfHQQ compares the tensors of a weight with its facts. problem is a clause, "" for none.
func groupsOfHQQ(f *finder, w *Weight, t *Tensor, h factsHQQ) (c *grouped, kind fault.Kind, problem string) {
	packing, ok := packingsHQQ[h.bits]
	n, isShape := dtype.NElements(h.shape)
	scale, zero := f.tensor(w.Parts[1]), f.tensor(w.Parts[2])
	switch {
	case h.isQuantised || f.tensor(module(w.Name)+".scale_q") != nil:
		return nil, fault.Unsupported, "its scales or zeros are quantised themselves, which this version does not read"
	case scale == nil || zero == nil:
		return nil, fault.Mismatch, fmt.Sprintf("%q or %q is missing", w.Parts[1], w.Parts[2])
	case !ok:
		return nil, fault.Unsupported, fmt.Sprintf("it has %d bits, want 1, 2, 3, 4 or 8", h.bits)
	case len(h.shape) != 2 || !isShape || n == 0 || n > 1<<50:
		return nil, fault.Mismatch, fmt.Sprintf("its shape is %d, want a matrix in %q", h.shape, module(w.Name)+".shape")
	case h.axis != 0 && h.axis != 1:
		return nil, fault.Mismatch, fmt.Sprintf("its axis is %d, want 0 or 1", h.axis)
	case !slices.Contains([]dtype.Type{dtype.F16, dtype.BF16, dtype.F32}, scale.DType):
		return nil, fault.Mismatch, fmt.Sprintf("its scales are %v, want F16, BF16 or F32", scale.DType)
	case zero.DType != scale.DType || !slices.Equal(zero.Shape, scale.Shape):
		return nil, fault.Mismatch, fmt.Sprintf("its zeros are %v of shape %d, want %v of shape %d as the scales", zero.DType, zero.Shape, scale.DType, scale.Shape)
	}
	size := uint64(h.size)
	if h.size <= 0 { // a group is a whole row or column
		size = h.shape[h.axis]
	}
	groups := n / size
	rows, cols, want := groups, size, []uint64{groups, 1}
	if h.axis == 0 {
		rows, cols, want = size, groups, []uint64{1, groups}
	}
	perWord := uint64(packing.top/packing.bits + 1)
	packing.n = int64(above(rows, perWord) * cols)
	nCodes, _ := dtype.NElements(t.Shape)
	have, _ := t.DType.NBytes(nCodes)
	switch {
	case n%size != 0 || !slices.Equal(scale.Shape, want):
		return nil, fault.Mismatch, fmt.Sprintf("its scales have the shape %d, want %d for the shape %d, groups of %d and axis %d", scale.Shape, want, h.shape, size, h.axis)
	case h.bits != 3 && rows%perWord != 0:
		return nil, fault.Mismatch, fmt.Sprintf("%d rows of codes do not fill words of %d", rows, perWord)
	case have != packing.n*packing.wordBytes:
		return nil, fault.Mismatch, fmt.Sprintf("its codes have %d bytes, want %d for the shape %d in %d bits", have, packing.n*packing.wordBytes, h.shape, h.bits)
	}
	c = &grouped{codes: packing, size: int64(size), dtype: scale.DType, isZero: true}
	if h.axis == 0 {
		c.size, c.period = 0, int64(groups)
	}
	return c, "", ""
}
