// Package resolve finds out what adapters change in a base: which tensor, which rectangle of it, and
// what happens there. It compares names and shapes, and reads no value of a base. Whoever applies
// the changes asks nothing about dialects, modules or configurations again.
//
// Every change of weights comes down to the same: rows of a tensor, seen as a row-major matrix,
// receive S·Left·Right with two thin factors, each a strided view of a tensor of an adapter. What is
// not low-rank stands beside it: a replaced tensor, trained rows, the magnitudes of DoRA, the part
// of the base that an initialisation took out.
package resolve

import (
	"slices"

	"github.com/loratool/loratool/format"
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

// Magnitude is what DoRA rescales an updated weight V = W + s·B·A with: m/‖V‖, one factor per output
// feature of the layer. PEFT takes the norm of an embedding over the vocabulary, so that there is
// one factor per embedding dimension.
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
	n := int(b.Tensor().Elements()) / rank
	return Factor{Blob: b, Across: n, Along: 1, Repeat: 1, Length: n}
}

// wholeB sees a tensor m×rank as B.
func wholeB(b Blob, rank int) Factor {
	return Factor{Blob: b, Across: 1, Along: rank, Repeat: 1, Length: int(b.Tensor().Elements()) / rank}
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

// Negative returns terms with their signs turned.
func Negative(terms []Term) []Term {
	n := slices.Clone(terms)
	for i := range n {
		n[i].Scale = -n[i].Scale
	}
	return n
}
