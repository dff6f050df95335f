// Package resolve decides how adapters change a base: it finds each tensor, the rectangle in it,
// and the operation. It compares names and shapes and reads no values of the base. Its callers need
// no knowledge of dialects, modules or configurations.
//
// Every low-rank change has one form: rows of a tensor, seen as a row-major matrix, receive
// S·Left·Right. Both thin factors are strided views of an adapter's tensor. The other changes have
// fields of their own: a replaced tensor, trained rows, the magnitudes of DoRA, and the part of the
// base that an initialisation subtracted.
package resolve

import (
	"bytes"
	"errors"
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

// Change collects the changes of one tensor of the base. The tensor is a matrix, cut by rows into
// bands of equal height with their own terms: one band per expert in a stacked tensor, a single
// band in any other.
type Change struct {
	Name   string // of the tensor
	Module string
	Tensor
	Stacked bool // the tensor has three dimensions and stacks matrices
	NBands  int
	Terms   []Term
	Deltas  []Delta    // updates that are no thin products; only in tensors with one band
	DoRA    *Magnitude // rescales the updated weight; nil leaves it
	Replace *Blob      // an adapter's tensor that replaces the base's; nil keeps the base's
	Rows    *Rows      // trained rows that replace the base's; nil keeps all
}

// Term is one update S·Left·Right of a band. Left (rows×Rank) and Right (Rank×cols) have the
// orientation of the base's tensor.
type Term struct {
	Adapter     int // among those of the merge
	Module      string
	Band        int
	Scale       float64 // S = ω·s
	Transposed  bool    // the base stores the weight n×m, so Left is Aᵀ and Right Bᵀ
	Rank        int
	Left, Right Factor
	Residual    Residual // a part of the base to subtract, in place of the factors
}

// Delta is an update of a tensor whose ΔW is no thin product (spec/METHODS.md): that of a layer, or
// a tensor of the adapter that is ΔW itself. Rows of ΔW from From on, Count of them, change the
// rows of the tensor from At on.
type Delta struct {
	Adapter         int // among those of the merge
	Module          string
	Scale           float64 // ω·s
	Layer           *format.Layer
	Source          format.Source
	Whole           Blob // ΔW itself, where there is no layer
	Height          int  // rows of ΔW
	Kernel          int  // columns that read one input
	At, From, Count int
}

// Method names the update: the kind of its layer, or "difference".
func (d *Delta) Method() string {
	if d.Layer == nil {
		return string(format.Difference)
	}
	if d.Layer.Kind == format.Conv {
		return string(format.FeatureTucker)
	}
	return string(d.Layer.Kind)
}

// isScaling reports whether the update depends on the weight.
func (d *Delta) isScaling() bool {
	return d.Layer != nil && (d.Layer.Kind == format.OutputScaling || d.Layer.Kind == format.InputScaling)
}

// Residual is a part P of the base's weight that PiSSA or OLoRA subtracted before training.
type Residual int

const (
	NoResidual    Residual = iota
	PiSSAResidual          // the leading singular vectors (Meng et al., arXiv:2404.02948)
	OLoRAResidual          // the leading columns of Q, and rows of R (Büyükakyüz, arXiv:2406.01775)
)

// Magnitude rescales an updated weight V = W + s·B·A as DoRA does: by m/‖V‖, one factor per output
// feature. PEFT takes the norm of an embedding over the vocabulary, so an embedding has one factor
// per embedding dimension.
type Magnitude struct {
	Blob
	Module string
	// OfColumns says that the factors are for columns, not for rows: Conv1D and embeddings store an
	// output feature as a column. The columns of an input of a convolution share a factor.
	OfColumns bool
}

// Rows replaces rows of a tensor: row i of the blob becomes row Order[i].
type Rows struct {
	Blob
	Order []int64
}

// Blob is a tensor of a source. The zero value stands for no tensor.
type Blob struct {
	Source format.Source
	Index  int
}

// Tensor returns the tensor's description.
func (b Blob) Tensor() *format.Tensor { return &b.Source.Manifest().Tensors[b.Index] }

// Factor is one of the two thin matrices of a term, a view of an adapter's tensor. Its element (k,
// j), with k below the rank and j below Length, is number
//
//	At + k·Across + ⌊j/Repeat⌋·Along
//
// of the tensor. The factor covers rows, or columns, First to First + Length of the weight and is
// zero elsewhere. A factor without a source is the 1×1 matrix [1].
//
// HeadSize is not 0 for a factor in another order than the weight: of each HeadSize rows, a head of
// an attention, one has row i of the first half as number 2i, and row i of the second as 2i + 1.
// That is the factor, or with ToPairs the weight.
//
// Runs is not zero for a factor of a weight that has several projections in turns.
type Factor struct {
	Blob
	At, Across, Along, Repeat int
	First, Length             int
	HeadSize                  int
	ToPairs                   bool
	Runs                      Runs
}

// Runs are the places of one projection among several that lie in turns: of every Step places, Size
// from From on. If Takes is false, the factor has the elements of the projection, and they go to
// these places of the weight. If it is true, the factor has all elements, and those at these places
// are taken, one after the other.
type Runs struct {
	From, Size, Step int
	Takes            bool
}

// meets reports whether two sets of places can have one in common.
func (r Runs) meets(other Runs) bool {
	return r.Step == 0 || r.Step != other.Step || r.From < other.From+other.Size && other.From < r.From+r.Size
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

// part cuts a factor to n of its rows or columns, from i on. A repeated factor cannot be cut, and
// one with heads only between them.
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

// Place returns the row, or column, of the weight that element j of the factor stands for, before
// First and Repeat; -1 if it stands for none.
func (f *Factor) Place(j int) int {
	switch r := f.Runs; {
	case r.Takes:
		i := j%r.Step - r.From
		if i < 0 || i >= r.Size {
			return -1
		}
		return j/r.Step*r.Size + i
	case r.Step > 0:
		return j/r.Size*r.Step + r.From + j%r.Size
	case f.HeadSize > 0 && f.ToPairs:
		head, i := j/f.HeadSize, j%f.HeadSize
		return head*f.HeadSize + i%(f.HeadSize/2)*2 + i/(f.HeadSize/2)
	case f.HeadSize > 0:
		head, i := j/f.HeadSize, j%f.HeadSize
		return head*f.HeadSize + i%2*(f.HeadSize/2) + i/2
	}
	return j
}

// IsInOrder reports whether element j of the factor stands for row, or column, j.
func (f *Factor) IsInOrder() bool { return f.HeadSize == 0 && f.Runs.Step == 0 }

// Covers returns the rows, or columns, of the weight between which a factor is not zero: the first,
// and the one after the last.
func (f Factor) Covers() [2]int {
	n := f.Length
	switch r := f.Runs; {
	case r.Takes:
		n = n / r.Step * r.Size
	case r.Step > 0:
		n = n / r.Size * r.Step
	}
	return [2]int{f.First, f.First + n}
}

// to moves a factor to another first row or column of the weight.
func (f Factor) to(first int) Factor {
	f.First = first
	return f
}

// Matrix returns the size of the tensor as a matrix: a vector is one row, and stacked matrices
// follow each other by rows.
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

// add adds the term s·B·A, or s·Aᵀ·Bᵀ if the base stores the weight transposed.
func (c *Change) add(x Term, b, a Factor, transposed bool) {
	x.Left, x.Right, x.Transposed = b, a, transposed
	if transposed {
		x.Left, x.Right = a, b
	}
	c.Terms = append(c.Terms, x)
}

// StackedAndNot is the error for a tensor that one adapter treats as stacked experts and another
// as a convolution.
func StackedAndNot(name string) error {
	return fault.New(fault.Mismatch, "%q gets an update as stacked experts and another one as a convolution", name)
}

// HasResidual reports whether the change subtracts a part of the base.
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

// Base holds the names, shapes and configuration of a base model, and no values. Config is zero for
// a checkpoint without a config.json.
type Base struct {
	Path       string // how errors name it
	Tensors    map[string]Tensor
	Listed     []string // the names of Tensors, which Names sorts: those of files mostly are; nil if not listed yet
	Config     config.Model
	ConfigText []byte // config.json as it is; nil if there is none to edit

	// IsDecodable is set if the base has quantised weights that can be read. Refused has those that
	// cannot, and the reasons.
	IsDecodable bool
	Refused     map[string]error

	// Unread has the components of a pipeline whose weights are not read, each with a file of them.
	Unread map[string]string

	companions map[string]string // see companion
}

// isGGUF reports whether the base is in GGUF files, whose weights are m×n, also those of models
// that have others in transformers.
func (b *Base) isGGUF() bool { return b.Config.Architecture != "" }

// Tensor is a tensor of a base.
type Tensor struct {
	DType dtype.Type
	Shape []uint64
}

// Elements returns the number of elements; a tensor without dimensions has one.
func (t Tensor) Elements() int64 {
	n := uint64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return int64(n)
}

// Names lists the tensors of a base, sorted. The base keeps the list.
func (b *Base) Names() []string {
	if b.Listed == nil {
		b.Listed = slices.AppendSeq(make([]string, 0, len(b.Tensors)), maps.Keys(b.Tensors))
	}
	slices.Sort(b.Listed)
	return b.Listed
}

// Edit is one step that gives a base other tensors. Either field may be empty.
type Edit struct {
	Rename  map[string]string // the present name of a tensor to its new one
	Tensors []NewTensor
}

// NewTensor is a tensor that the base gets, or that the edit changes.
type NewTensor struct {
	Name  string
	From  string  // the tensor that supplies its values; may be its own name
	Rows  uint64  // number of rows; rows beyond From's are zero. 0 keeps From's number
	Zeros *Tensor // a tensor of zeros in place of From
}

// apply returns the base after an edit.
func (b *Base) apply(e Edit) *Base {
	after := *b
	after.Listed = nil
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
func (b *Base) checkStorage(name string, d dtype.Type) error {
	if err := b.Refused[name]; err != nil && (errors.Is(err, fault.Mismatch) || errors.Is(err, fault.Corrupt)) {
		return err
	}
	companion, hasCompanion := b.companion(name)
	if d.IsFloat() && !hasCompanion {
		return nil
	}
	quantised := ""
	switch m := b.Config.QuantizationMethod; {
	case hasCompanion:
		quantised = fmt.Sprintf(" (quantised: %q lies beside it)", companion)
	case m != "":
		quantised = fmt.Sprintf(" (quantised: config.json says %s)", m)
	}
	if !d.IsFloat() {
		return fault.New(fault.Unsupported, "tensor %q of the base is stored as %v%s; merge supports F64, F32, F16 and BF16", name, d, quantised).
			WithHint(naming.Dequantise)
	}
	return fault.New(fault.Unsupported, "tensor %q of the base must be dequantised first%s", name, quantised).
		WithHint(naming.Dequantise)
}

// companion returns the tensor beside a quantised one that holds its scales. FP8 of vLLM and
// DeepSeek writes weight_scale and weight_scale_inv, bitsandbytes absmax, quant_map and SCB, and
// GPTQ, AWQ and MLX scales.
func (b *Base) companion(name string) (companion string, ok bool) {
	if b.companions == nil {
		b.companions = make(map[string]string)
		for beside := range b.Tensors {
			for _, suffix := range []string{"_scale", "_scale_inv", ".absmax", ".quant_map", ".SCB"} {
				if of, ok := strings.CutSuffix(beside, suffix); ok {
					b.companions[of] = max(b.companions[of], beside)
				}
			}
			if module, ok := strings.CutSuffix(beside, ".scales"); ok {
				b.companions[module] = beside
			}
		}
	}
	if len(b.companions) == 0 {
		return "", false
	}
	if companion, ok = b.companions[naming.Module(name)]; !ok {
		companion, ok = b.companions[name]
	}
	return companion, ok
}

// sameBlob compares two tensors.
func sameBlob(a, b Blob) (bool, error) {
	s, t := a.Tensor(), b.Tensor()
	if s.DType != t.DType || !slices.Equal(s.Shape, t.Shape) {
		return false, nil
	}
	p, q := make([]byte, min(s.NBytes(), pieceBytes)), make([]byte, min(s.NBytes(), pieceBytes))
	for off := int64(0); off < s.NBytes(); off += pieceBytes {
		n := min(pieceBytes, s.NBytes()-off)
		if err := errors.Join(a.Source.ReadBlobAt(p[:n], a.Index, off), b.Source.ReadBlobAt(q[:n], b.Index, off)); err != nil {
			return false, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// pieceBytes is the number of bytes that one read of a comparison takes.
const pieceBytes = 1 << 18
