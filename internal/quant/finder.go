package quant

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/lookup"
)

// finder is the state of Recognise.
type finder struct {
	*listing
	ends   map[string]bool // endings of optional tensors that any name has
	beside []string        // those of besideFP8 among them
	config Config
	read   func(name string) ([]byte, error)
	found  Found

	inBlocksOf     [2]uint64 // the last size of blocks of FP8, and the text for it, which all weights share
	schemeOfBlocks string

	isScaled *bool // whether any FP8 tensor has scales; nil if not known yet
}

// listing holds the tensors of the checkpoint.
type listing struct {
	sorted []listed // by name
	table  *lookup.Table
}

// listed is a tensor of the checkpoint. claimed says that a weight or a refusal has it.
type listed struct {
	*Tensor
	claimed bool
}

// besideFP8 are the endings of the names of tensors that belong to the activations of a module.
var besideFP8 = []string{
	"activation_scale", "input_global_scale", "input_scale", "input_scale_ub", "input_zero_point", "output_scale", "output_zero_point", "qscale_act",
}

// optionalFP8 are the endings of the other tensors that a weight in FP8 may have.
var optionalFP8 = []string{"_scale_inv", "_scale", ".qscale_weight", ".scale", "_zero_point"}

func newFinder(tensors []Tensor, c Config, read func(name string) ([]byte, error)) *finder {
	f := &finder{listing: &listing{make([]listed, len(tensors)), lookup.New(len(tensors))}, config: c, read: read, ends: make(map[string]bool)}
	for i := range tensors {
		f.sorted[i].Tensor = &tensors[i]
	}
	slices.SortFunc(f.sorted, func(a, b listed) int { return strings.Compare(a.Name, b.Name) })
	for i := range f.sorted {
		f.table.Add(f.sorted[i].Name, i, f.nameAt)
	}
	for _, ending := range slices.Concat(besideFP8, optionalFP8) {
		f.ends[ending] = slices.ContainsFunc(tensors, func(t Tensor) bool { return strings.HasSuffix(t.Name, ending) })
	}
	f.beside = slices.DeleteFunc(slices.Clone(besideFP8), func(ending string) bool { return !f.ends[ending] })
	return f
}

func (l *listing) nameAt(i int) string { return l.sorted[i].Name }

// find returns a tensor with its mark, or nil.
func (l *listing) find(name string) *listed {
	if i, ok := l.table.Find(name, l.nameAt); ok {
		return &l.sorted[i]
	}
	return nil
}

// tensor returns a tensor, or nil.
func (f *finder) tensor(name string) *Tensor {
	if t := f.find(name); t != nil {
		return t.Tensor
	}
	return nil
}

// add records a weight and claims its tensors.
func (f *finder) add(w Weight) {
	for _, names := range [][]string{w.Parts, w.Beside} {
		for _, name := range names {
			f.find(name).claimed = true
		}
	}
	if f.found.Weights == nil {
		f.found.Weights = make([]Weight, 0, len(f.sorted)/2) // most weights have two parts or more
	}
	f.found.Weights = append(f.found.Weights, w)
}

// Hint is the next step for a weight that cannot be read.
const Hint = "use the checkpoint that it was quantised from, or a dequantised copy"

// refuse records a weight that this version cannot read, and claims those of its tensors that
// exist.
func (f *finder) refuse(w Weight, kind fault.Kind, format string, args ...any) {
	r := Refusal{Name: w.Name, Scheme: w.Scheme, Err: fault.New(kind, format, args...).WithHint(Hint)}
	for _, name := range slices.Concat(w.Parts, w.Beside) {
		if t := f.find(name); t != nil {
			t.claimed = true
			r.Parts = append(r.Parts, name)
		}
	}
	f.found.Refused = append(f.found.Refused, r)
}

// has returns those of the names that are tensors.
func (f *finder) has(names ...string) (present []string) {
	for _, name := range names {
		if f.find(name) != nil {
			present = append(present, name)
		}
	}
	return present
}

// optional returns the tensor of a name and one of besideFP8 or optionalFP8, or nil. It looks for
// none where no name ends so: most models have one or two of the endings, and planning asks for all
// of them for each weight.
func optional(f *finder, name, ending string) *Tensor {
	if !f.ends[ending] {
		return nil
	}
	return f.tensor(name + ending)
}

// is reports whether a tensor exists with a dtype and shape.
func (f *finder) is(name string, d dtype.Type, shape ...uint64) bool {
	t := f.tensor(name)
	return t != nil && t.DType == d && slices.Equal(t.Shape, shape)
}

// dtypeOf returns the dtype of a weight before it was quantised: that of the model, or that of its
// scales, which are as wide in some formats.
func (c *Config) dtypeOf(scale *Tensor) dtype.Type {
	switch d := c.DType; {
	case d != dtype.Invalid:
		return d
	case scale != nil && scale.DType == dtype.F16:
		return dtype.F16
	}
	return dtype.BF16
}

// module returns the name of a weight's module: "a.weight" is of "a". Fused weights of experts are
// called like modules.
func module(weight string) string { return strings.TrimSuffix(weight, ".weight") }

// above returns ⌈n/d⌉.
func above(n, d uint64) uint64 {
	q := n / d
	if n%d > 0 {
		q++
	}
	return q
}
