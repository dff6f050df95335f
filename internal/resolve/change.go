// Package resolve finds out what adapters change in a base: which tensor, which rectangle of it,
// and what happens there. It compares names and shapes, and reads no value of a base. Whoever
// applies the changes asks nothing about dialects, modules or configurations again.
//
// Every change of weights comes down to the same: rows of a tensor, seen as a row-major matrix,
// receive S·Left·Right with two thin factors, each a strided view of a tensor of an adapter. What
// is not low-rank stands beside it: a replaced tensor, trained rows, the magnitudes of DoRA, the
// part of the base that an initialisation took out.
package resolve

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Change is what one tensor of the base gets from the adapters of a merge. The tensor is seen as a
// matrix, cut by rows into bands of equal height that each have terms of their own: one per expert
// where the tensor stacks experts, and one alone everywhere else.
type Change struct {
	Name   string // of the tensor
	Module string
	Tensor
	Stacked bool // three dimensions that stand for a stack of matrices
	NBands  int
	Terms   []Term
	DoRA    *Magnitude // rescales the updated weight; nil does not
	Replace *Blob      // the tensor of an adapter that stands in for the base's; nil keeps it
	Rows    *Rows      // nil keeps all
}

// Term is one update S·Left·Right of a band, with Left (rows×Rank) and Right (Rank×cols) in the
// orientation of the base's tensor.
type Term struct {
	Adapter     int // among those of the merge
	Module      string
	Band        int
	Scale       float64 // S = ω·s
	Transposed  bool    // the base stores the weight n×m, so Left is Aᵀ and Right Bᵀ
	Rank        int
	Left, Right Factor
	Residual    Residual // in place of the factors: a part of the base that is taken out
}

// Residual is a part P of the base's own weight that PiSSA or OLoRA took out of it before training.
type Residual int

const (
	NoResidual    Residual = iota
	PiSSAResidual          // the leading singular vectors (Meng et al., arXiv:2404.02948)
	OLoRAResidual          // the leading columns of Q, and rows of R (Büyükakyüz, arXiv:2406.01775)
)

// Magnitude is what DoRA rescales an updated weight V = W + s·B·A with: m/‖V‖, one factor per
// output feature of the layer. PEFT takes the norm of an embedding over the vocabulary, so that
// there is one factor per embedding dimension.
type Magnitude struct {
	Blob
	Module    string
	OfColumns bool // of the base's tensor: Conv1D stores an output feature as a column, and so does an embedding
}

// Rows are rows of a tensor that are replaced: row Order[i] of the base by row i of the blob.
type Rows struct {
	Blob
	Order []int64
}

// Blob is a tensor of a source. The zero value is none.
type Blob struct {
	Source format.Source
	Index  int
}

// Tensor describes the tensor.
func (b Blob) Tensor() *format.Tensor { return &b.Source.Manifest().Tensors[b.Index] }

// Factor is one of the two thin matrices of a term, seen in a tensor of an adapter: element (k, j),
// k below the rank and j below Length, is number
//
//	At + k·Across + ⌊j/Repeat⌋·Along
//
// of the tensor. It stands for rows, or columns, First to First + Length of the weight; beyond them
// the factor is zero. A factor without a source is the 1×1 matrix [1].
type Factor struct {
	Blob
	At, Across, Along, Repeat int
	First, Length             int
}

var one = Factor{Length: 1, Repeat: 1}

// WholeA sees a tensor rank×n as A.
func WholeA(b Blob, rank int) Factor {
	n := int(b.Tensor().Elements() / int64(rank))
	return Factor{Blob: b, Across: n, Along: 1, Repeat: 1, Length: n}
}

// wholeB sees a tensor m×rank as B.
func wholeB(b Blob, rank int) Factor {
	return Factor{Blob: b, Across: 1, Along: rank, Repeat: 1, Length: int(b.Tensor().Elements() / int64(rank))}
}

// part cuts a factor to n of its rows or columns, from i on. It does not cut a repeated one.
func (f Factor) part(i, n int) Factor {
	f.At += i * f.Along
	f.Length = n
	return f
}

// ranks cuts a factor to the ranks from k on.
func (f Factor) ranks(k int) Factor {
	f.At += k * f.Across
	return f
}

// to moves what a factor stands for to another first row or column of the weight.
func (f Factor) to(first int) Factor {
	f.First = first
	return f
}

// Matrix returns the tensor as a matrix: a vector is one row, and stacked matrices stand one below
// the other.
func (c *Change) Matrix() (nRows, nCols int64) {
	if len(c.Shape) < 2 {
		return 1, c.Elements()
	}
	nRows = int64(c.Shape[0])
	if c.Stacked {
		nRows *= int64(c.Shape[1])
	}
	if nRows == 0 {
		return 0, 0
	}
	return nRows, c.Elements() / nRows
}

// add adds a term s·B·A, or where the base stores the weight transposed, s·Aᵀ·Bᵀ.
func (c *Change) add(x Term, b, a Factor, transposed bool) {
	x.Left, x.Right, x.Transposed = b, a, transposed
	if transposed {
		x.Left, x.Right = a, b
	}
	c.Terms = append(c.Terms, x)
}

// HasResidual reports whether a part of the base is taken out.
func (c *Change) HasResidual() bool {
	return slices.ContainsFunc(c.Terms, func(x Term) bool { return x.Residual != NoResidual })
}

// Negative returns terms with their signs reversed.
func Negative(terms []Term) []Term {
	n := slices.Clone(terms)
	for i := range n {
		n[i].Scale = -n[i].Scale
	}
	return n
}

// Base is what resolving knows of a base model: names, shapes and its configuration. It holds no
// values. The zero value of Config is that of a checkpoint without a config.json.
type Base struct {
	Path       string // how errors name it
	Tensors    map[string]Tensor
	Config     config.Model
	ConfigText []byte // config.json as it is; nil where there is none to edit
}

// Tensor is a tensor of a base.
type Tensor struct {
	DType dtype.Type
	Shape []uint64
}

// Elements is the number of elements; a tensor without dimensions has one.
func (t Tensor) Elements() int64 {
	n := uint64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return int64(n)
}

// Names lists the tensors of a base, sorted.
func (b *Base) Names() []string { return slices.Sorted(maps.Keys(b.Tensors)) }

// Edit is a step in which a base gets other tensors than it has. Either field may be empty.
type Edit struct {
	Rename  map[string]string // the present name of a tensor to its new one
	Tensors []NewTensor
}

// NewTensor is a tensor that the base gets, or has otherwise afterwards.
type NewTensor struct {
	Name  string
	From  string  // the tensor that its values are those of: its own name, or another's
	Rows  uint64  // how many it has; those that From lacks are zero. 0 keeps the number
	Zeros *Tensor // a tensor of zeros in place of From
}

// apply returns the base after an edit.
func (b *Base) apply(e Edit) *Base {
	after := *b
	after.Tensors = make(map[string]Tensor, len(b.Tensors))
	for name, t := range b.Tensors {
		if renamed, ok := e.Rename[name]; ok {
			name = renamed
		}
		after.Tensors[name] = t
	}
	for _, n := range e.Tensors {
		if n.Zeros != nil {
			after.Tensors[n.Name] = *n.Zeros
			continue
		}
		t := b.Tensors[n.From]
		t.Shape = slices.Clone(t.Shape)
		if n.Rows > 0 {
			t.Shape[0] = n.Rows
		}
		after.Tensors[n.Name] = t
	}
	return &after
}

// checkStorage refuses a tensor whose values are not plain floats.
func (b *Base) checkStorage(name string) error {
	quantised := ""
	if m := b.Config.QuantizationMethod; m != "" {
		quantised = fmt.Sprintf(" (quantised: config.json says %s)", m)
	}
	module := naming.Module(name)
	for _, companion := range []string{name + "_scale", name + "_scale_inv", name + ".absmax", name + ".quant_map", name + ".SCB", module + ".scales"} {
		if _, ok := b.Tensors[companion]; ok {
			quantised = fmt.Sprintf(" (quantised: beside it lies %q)", companion)
		}
	}
	d := b.Tensors[name].DType
	if !d.IsFloat() || quantised != "" && d.Size() < 2 {
		return fault.New(fault.Unsupported, "tensor %q of the base is stored as %v%s; F64, F32, F16 and BF16 can be merged into", name, d, quantised).
			WithHint(naming.Dequantise)
	}
	if quantised != "" && !strings.Contains(quantised, "config.json") {
		return fault.New(fault.Unsupported, "tensor %q of the base is not plain%s", name, quantised).
			WithHint(naming.Dequantise)
	}
	return nil
}
