package quant

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// findPacked recognises the weights of compressed-tensors that are called weight_packed: integers
// of up to 8 bits in words of I32, and small floats in bytes.
func findPacked(f *finder, t *Tensor) error {
	module, ok := strings.CutSuffix(t.Name, ".weight_packed")
	if !ok || f.tensor(module+".scale_packed") != nil {
		return nil // Marlin
	}
	w := Weight{Name: module + ".weight", Scheme: "compressed-tensors", Parts: []string{t.Name, module + ".weight_scale"}}
	scale := f.tensor(w.Parts[1])
	if scale != nil {
		w.DType = f.config.dtypeOf(scale)
	}
	w.Beside = besideOf(f, module)
	switch {
	case scale == nil:
		f.refuse(w, fault.Mismatch, "%q is stored in compressed-tensors' packed form, and its scales %q are missing", w.Name, w.Parts[1])
		return nil
	case t.DType == dtype.I32:
		return addIntegers(f, w, module)
	case t.DType != dtype.U8:
		f.refuse(w, fault.Mismatch, "%q has the dtype %v, want I32 or U8", t.Name, t.DType)
		return nil
	}
	if global := module + ".weight_global_scale"; f.tensor(global) != nil {
		w.Scheme, w.Parts = "NVFP4 of compressed-tensors", append(w.Parts, global)
		addNVFP4(f, w, true)
		return nil
	}
	addMicroscaling(f, w)
	return nil
}

// besideOf returns the tensors of a module that do not change the values of its weight.
func besideOf(f *finder, module string) (names []string) {
	for _, ending := range f.beside {
		names = append(names, f.has(module+"."+ending)...)
	}
	return names
}

// addIntegers adds a weight of packed integers:
//
//	w[i][j] = (q[i][j] − z[g]) · s[g]
//
// Codes and zero points are stored with 2^(bits−1) added, and zero points packed along the rows.
// The width of the codes follows from that of the stored words.
func addIntegers(f *finder, w Weight, module string) error {
	shape, err := readShape(f, &w, module+".weight_shape")
	if err != nil || shape == nil {
		return err
	}
	codes, scale := f.tensor(w.Parts[0]), f.tensor(w.Parts[1])
	w.Shape = shape
	p, problem := f.config.packingOf(shape, codes.Shape)
	if problem != "" {
		f.refuse(w, fault.Mismatch, "%q has the shape %d and codes of shape %d, %s", w.Name, shape, codes.Shape, problem)
		return nil
	}
	w.Scheme = fmt.Sprintf("INT%d of compressed-tensors", p.bits)
	s := &scaled{table: offsetCodes[p.bits], codes: p, rows: int64(shape[len(shape)-2]), cols: int64(shape[len(shape)-1])}
	if problem := addGroups(f, s, shape, scale); problem != "" {
		f.refuse(w, fault.Mismatch, "%q is stored as %s of shape %d, with scales of %v and shape %d, want %s", w.Name, w.Scheme, shape, scale.DType, scale.Shape, problem)
		return nil
	}
	if !hasAll(f, w, module) {
		return nil
	}
	if ok := addZeros(f, &w, s, shape, module+".weight_zero_point"); !ok {
		return nil
	}
	return addInOrder(f, w, s, module+".weight_g_idx")
}

// hasAll refuses a weight that lacks a tensor which the configuration says it has.
func hasAll(f *finder, w Weight, module string) bool {
	for _, ending := range f.config.Needs {
		if name := module + "." + ending; f.tensor(name) == nil {
			f.refuse(w, fault.Mismatch, "%q is stored as %s, and %q is missing, which the configuration says that it has", w.Name, w.Scheme, name)
			return false
		}
	}
	return true
}

// readShape reads the shape of a weight from a tensor, and refuses the weight if it cannot be.
func readShape(f *finder, w *Weight, name string) (shape []uint64, err error) {
	t := f.tensor(name)
	if t == nil {
		f.refuse(*w, fault.Mismatch, "%q is stored in compressed-tensors' packed form, and its shape %q is missing", w.Name, name)
		return nil, nil
	}
	w.Beside = append(w.Beside, name)
	size := t.DType.Size()
	if t.DType != dtype.I64 && t.DType != dtype.I32 || len(t.Shape) != 1 || t.Shape[0] != 2 && t.Shape[0] != 3 {
		f.refuse(*w, fault.Mismatch, "%q has %v of shape %d, want 2 or 3 numbers of I64 or I32", name, t.DType, t.Shape)
		return nil, nil
	}
	raw, err := f.read(name)
	if err != nil {
		return nil, err
	}
	for ; len(raw) >= size; raw = raw[size:] {
		n := int64(int32(binary.LittleEndian.Uint32(raw)))
		if t.DType == dtype.I64 {
			n = int64(binary.LittleEndian.Uint64(raw))
		}
		if n < 1 {
			f.refuse(*w, fault.Mismatch, "%q says that the shape of %q has the number %d", name, w.Name, n)
			return nil, nil
		}
		shape = append(shape, uint64(n))
	}
	return shape, nil
}

// offsetCodes holds the values of the codes of integers by their width: code − 2^(bits−1).
var offsetCodes = func() (tables [9][]float64) {
	for bits := 1; bits <= 8; bits++ {
		tables[bits] = make([]float64, 256)
		for code := range tables[bits] {
			tables[bits][code] = float64(code - 1<<(bits-1))
		}
	}
	return tables
}()

// packingOf returns how the integers of a weight lie in words of 32 bits, which the number of the
// words of a row tells. Releases of compressed-tensors before 0.20 begin a new word where a code
// would not fit. problem is a clause, "" for none.
func (c *Config) packingOf(shape, stored []uint64) (p packing, problem string) {
	last := len(shape) - 1
	if len(stored) != len(shape) || !slices.Equal(stored[:last], shape[:last]) {
		return p, "want the same number of rows"
	}
	cols, words := shape[last], stored[last]
	if cols > 1<<40 {
		return p, "which is too large"
	}
	widths := c.Bits
	if len(widths) == 0 {
		widths = []uint64{1, 2, 3, 4, 5, 6, 7, 8}
	}
	var fits []packing
	for _, bits := range widths {
		perWord := 32 / bits
		isDense, isGapped := words == above(cols*bits, 32), words == above(cols, perWord)
		dense := packing{bits: int64(bits), rowBytes: int64(4 * words)}
		gapped := packing{bits: int64(bits), rowBytes: int64(4 * words), perWord: int64(perWord)}
		switch {
		case isDense:
			fits = append(fits, dense)
			if isGapped && 32%bits != 0 && cols > perWord {
				fits = append(fits, gapped)
			}
		case isGapped && len(c.Bits) > 0:
			fits = append(fits, gapped)
		}
	}
	switch len(fits) {
	case 0:
		return p, fmt.Sprintf("which are not words of codes of %s bits", list(widths))
	case 1:
		return fits[0], ""
	}
	return p, "which fit codes of more than one width or order"
}

// list formats numbers.
func list(numbers []uint64) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(numbers), " ", ", "), "[]")
}

// addGroups sets the grid of a weight of integers with one scale, or with scales for rows or for
// addGroups of columns. problem says which scales would fit if these do not.
func addGroups(f *finder, s *scaled, shape []uint64, scale *Tensor) (problem string) {
	switch scale.DType {
	case dtype.F32, dtype.BF16, dtype.F16:
	default:
		return "scales of F32, F16 or BF16"
	}
	last := len(shape) - 1
	lead, cols := shape[:last], shape[last]
	n, _ := dtype.NElements(scale.Shape)
	width := cols
	switch {
	case n == 1:
		if last == 2 {
			s.rows *= int64(shape[0])
		}
		s.scales = blocks(scale.DType, s.rows, s.cols, s.rows, s.cols)
		return ""
	case slices.Equal(scale.Shape, lead):
	case len(scale.Shape) != len(shape) || !slices.Equal(scale.Shape[:last], lead) || scale.Shape[last] == 0 || scale.Shape[last] > cols:
		return fmt.Sprintf("one, %d, or %d and the number of groups", append(slices.Clone(lead), 1), lead)
	default:
		var ok bool
		if width, ok = f.config.groupOf(cols, scale.Shape[last]); !ok {
			return fmt.Sprintf("a number of groups that divides %d columns, or belongs to groups of %s", cols, list(f.config.Groups))
		}
	}
	s.scales = blocks(scale.DType, s.rows, s.cols, 1, int64(width))
	return ""
}

// groupOf returns the number of columns in a group. The last group of a row can be short.
func (c *Config) groupOf(cols, n uint64) (size uint64, ok bool) {
	for _, size := range c.Groups {
		if above(cols, size) == n {
			return size, true
		}
	}
	return cols / n, cols%n == 0
}

// addZeros sets the zero points of a weight of integers, if it has any. They are stored like the
// scales, in I8, or packed like the codes, along the rows. It reports whether the weight is not
// refused.
func addZeros(f *finder, w *Weight, s *scaled, shape []uint64, name string) (ok bool) {
	t := f.tensor(name)
	if t == nil {
		return true
	}
	scale := f.tensor(w.Parts[1])
	rows := uint64(s.codes.wordsOf(int64(shape[len(shape)-2])))
	down := append(slices.Clone(shape[:len(shape)-2]), rows, uint64(s.scales.across))
	switch {
	case t.DType == dtype.I8 && slices.Equal(t.Shape, scale.Shape):
		s.zeros = plainZeros{len(w.Parts), dtype.I8}
	case t.DType == dtype.I32 && slices.Equal(t.Shape, down) && s.scales.height == 1:
		s.zeros = &packedZeros{part: len(w.Parts), codes: s.codes, rows: s.rows, across: s.scales.across, words: int64(rows), table: s.table}
	default:
		f.refuse(*w, fault.Mismatch, "%q is stored as %s of shape %d, with zero points of %v and shape %d, want I8 and %d, or I32 and %d",
			w.Name, w.Scheme, shape, t.DType, t.Shape, scale.Shape, down)
		return false
	}
	w.Scheme += " with zero points"
	w.Parts = append(w.Parts, name)
	return true
}

// addInOrder adds a weight whose groups may be scattered over the columns, as the order of
// activations had it. A list with a negative number is not in use.
func addInOrder(f *finder, w Weight, s *scaled, name string) error {
	t := f.tensor(name)
	if t == nil {
		f.add(w.with(s))
		return nil
	}
	if t.DType != dtype.I32 || len(t.Shape) != 1 || t.Shape[0] != uint64(s.cols) || s.scales.height != 1 {
		f.refuse(w, fault.Mismatch, "%q has %v of shape %d, want the groups of %d columns in I32", name, t.DType, t.Shape, s.cols)
		return nil
	}
	raw, err := f.read(name)
	if err != nil {
		return err
	}
	seen := make([]bool, s.scales.across)
	for i := range s.cols {
		g := int64(int32(binary.LittleEndian.Uint32(raw[4*i:])))
		switch {
		case g < 0:
			w.Beside = append(w.Beside, name)
			f.add(w.with(s))
			return nil
		case g >= s.scales.across:
			f.refuse(w, fault.Mismatch, "%q says that column %d belongs to group %d, and there are %d", name, i, g, s.scales.across)
			return nil
		}
		seen[g] = true
	}
	if g := slices.Index(seen, false); g >= 0 {
		f.refuse(w, fault.Mismatch, "%q gives no column to group %d", name, g)
		return nil
	}
	s.order, w.Scheme, w.Parts = len(w.Parts), w.Scheme+" in the order of activations", append(w.Parts, name)
	f.add(w.with(s))
	return nil
}

func (w Weight) with(c Codec) Weight {
	w.Codec = c
	return w
}

// findBytes recognises codes of I8 with scales, and possibly zero points, of compressed-tensors.
func findBytes(f *finder, t *Tensor) error {
	if t.DType != dtype.I8 || !strings.HasSuffix(t.Name, ".weight") {
		return nil
	}
	name := t.Name + "_scale"
	scale := f.tensor(name)
	if scale == nil {
		return nil
	}
	w := Weight{Name: t.Name, Scheme: "INT8 of compressed-tensors", Shape: t.Shape, Parts: []string{t.Name, name}, DType: f.config.dtypeOf(scale)}
	w.Beside = besideOf(f, module(t.Name))
	if hasAll(f, w, module(t.Name)) {
		addInt8(f, w, scale, t.Name+"_zero_point")
	}
	return nil
}

// addInt8 adds a weight with codes of I8.
func addInt8(f *finder, w Weight, scale *Tensor, zeros string) {
	n, _ := dtype.NElements(w.Shape)
	if len(w.Shape) != 2 && len(w.Shape) != 3 || n == 0 {
		f.refuse(w, fault.Mismatch, "%q is stored as %s of shape %d, want a matrix, or one for each expert, of at least one element", w.Name, w.Scheme, w.Shape)
		return
	}
	rows, cols := int64(w.Shape[len(w.Shape)-2]), int64(w.Shape[len(w.Shape)-1])
	s := &scaled{table: int8s[:], codes: dense(8, cols), rows: rows, cols: cols}
	if problem := addGroups(f, s, w.Shape, scale); problem != "" {
		f.refuse(w, fault.Mismatch, "%q is stored as %s of shape %d, with scales of %v and shape %d, want %s", w.Name, w.Scheme, w.Shape, scale.DType, scale.Shape, problem)
		return
	}
	if addZeros(f, &w, s, w.Shape, zeros) {
		f.add(w.with(s))
	}
}
