package quant

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// finder is the state of Recognise.
type finder struct {
	tensors map[string]*Tensor
	names   []string // sorted
	claimed map[string]bool
	config  Config
	read    func(name string) ([]byte, error)
	found   Found

	isScaled *bool // whether any FP8 tensor has scales; nil if not known yet
}

// add records a weight and claims its tensors.
func (f *finder) add(w Weight) {
	for _, name := range slices.Concat(w.Parts, w.Beside) {
		f.claimed[name] = true
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
		if f.tensors[name] != nil {
			f.claimed[name] = true
			r.Parts = append(r.Parts, name)
		}
	}
	f.found.Refused = append(f.found.Refused, r)
}

// has returns those of the names that are tensors.
func (f *finder) has(names ...string) (present []string) {
	for _, name := range names {
		if f.tensors[name] != nil {
			present = append(present, name)
		}
	}
	return present
}

// is reports whether a tensor exists with a dtype and shape.
func (f *finder) is(name string, d dtype.Type, shape ...uint64) bool {
	t := f.tensors[name]
	return t != nil && t.DType == d && slices.Equal(t.Shape, shape)
}

// dtypeOf returns the dtype of a weight before it was quantised: that of the model, or that of its
// scales, which are as wide in some formats.
func (f *finder) dtypeOf(scale *Tensor) dtype.Type {
	switch d := f.config.DType; {
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
