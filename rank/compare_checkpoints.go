package rank

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	inner "github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/parallel"
)

// CheckpointComparison compares two checkpoints.
type CheckpointComparison struct {
	Tensors []CheckpointTensor `json:"tensors"` // in the order of A, then those that only B has
	Renamed string             `json:"renamed"` // how the names of A and B differ, "" if they do not

	Identical int `json:"identical"` // numbers of tensors
	Changed   int `json:"changed"`
	Reshaped  int `json:"reshaped"`
	OnlyA     int `json:"only_a"`
	OnlyB     int `json:"only_b"`
	// Norm is ‖B − A‖_F over all changed tensors with floats, and Relative the same ÷ ‖A‖_F, over
	// the tensors that both have.
	Norm     float64 `json:"norm"`
	Relative float64 `json:"relative_norm"`
	// UnreadA and UnreadB list the quantised weights that cannot be read. Their codes and scales
	// are compared as tensors.
	UnreadA []UnreadWeight `json:"unread_a"`
	UnreadB []UnreadWeight `json:"unread_b"`
}

// UnreadWeight is a quantised weight that cannot be read, with the reason.
type UnreadWeight struct {
	Weight string `json:"weight"`
	Scheme string `json:"scheme"`
	Why    string `json:"why"`
}

// CheckpointTensor compares a tensor of two checkpoints.
type CheckpointTensor struct {
	Tensor string   `json:"tensor"` // the name in A, or that in B if only B has it
	Status Status   `json:"status"` // identical means equal values, whatever the dtype
	ShapeA []uint64 `json:"shape_a"`
	ShapeB []uint64 `json:"shape_b"`
	DTypeA string   `json:"dtype_a"`
	DTypeB string   `json:"dtype_b"`

	Relative float64 `json:"relative_norm"` // ‖B − A‖_F ÷ ‖A‖_F; 0 if A is zero
	Norm     float64 `json:"norm"`          // ‖B − A‖_F
	Max      float64 `json:"max"`           // the largest |B − A|
	Elements int64   `json:"elements"`      // that differ
	// NonFinite counts the elements that are NaN or infinite in either checkpoint and not the same
	// in both. They are not part of the norms.
	NonFinite int64 `json:"non_finite"`

	NoSpectrum string `json:"no_spectrum,omitempty"` // why a requested spectrum is missing
	*ChangeSpectrum

	base float64 // ‖A‖²
}

// CompareCheckpoints compares the tensors of two checkpoints with the same name; names that differ
// by a prefix or by the release of transformers count as the same. It reads both once, and holds a
// few pieces of them. With CompareOptions.Spectra it reads changed matrices twice, and holds one of
// them in float32 ([ChangeBytes]).
func CompareCheckpoints(ctx context.Context, a, b *checkpoint.Checkpoint, o CompareOptions) (*CheckpointComparison, error) {
	base, tuned := opened(a), opened(b)
	if (base.Config.Architecture == "") != (tuned.Config.Architecture == "") { // one in GGUF
		var err [2]error
		base, err[0] = inner.AsTransformers(base)
		tuned, err[1] = inner.AsTransformers(tuned)
		if err := errors.Join(err[:]...); err != nil {
			return nil, err
		}
	}
	names, how, ambiguous := naming.Pair(base.Names(), tuned.Names())
	if len(ambiguous) > 0 {
		return nil, fault.New(fault.Mismatch, "the tensor names of the two checkpoints match in several ways: %s", strings.Join(ambiguous, "; "))
	}
	r := &CheckpointComparison{Tensors: []CheckpointTensor{}, Renamed: how, UnreadA: unreadOf(base), UnreadB: unreadOf(tuned)}
	of := make(map[string]string, len(names)) // names of A → names of B
	for theirs, ours := range names {
		of[ours] = theirs
	}
	for _, name := range base.Names() {
		x := locate(base, name)
		t := CheckpointTensor{Tensor: name, Status: OnlyA, ShapeA: x.ref.Tensor.Shape, ShapeB: []uint64{}, DTypeA: x.stored()}
		if theirs, isCommon := of[name]; isCommon {
			p := &pair{name: name, base: *x, tuned: *locate(tuned, theirs)}
			if err := t.compare(ctx, p, &o); err != nil {
				return nil, err
			}
			if o.Spectra && t.Status == Changed {
				if err := t.spectrum(ctx, p, o.Workers); err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
			}
		} else {
			o.progress(x.ref.Tensor.NBytes)
		}
		r.add(t)
	}
	for _, name := range tuned.Names() {
		if _, isCommon := names[name]; !isCommon {
			y := locate(tuned, name)
			r.add(CheckpointTensor{Tensor: name, Status: OnlyB, ShapeA: []uint64{}, ShapeB: y.ref.Tensor.Shape, DTypeB: y.stored()})
		}
	}
	var squares, all float64
	for i := range r.Tensors {
		squares, all = squares+r.Tensors[i].Norm*r.Tensors[i].Norm, all+r.Tensors[i].base
	}
	if r.Norm = math.Sqrt(squares); all > 0 {
		r.Relative = math.Sqrt(squares / all)
	}
	return r, nil
}

// unreadOf lists the quantised weights of a checkpoint that cannot be read.
func unreadOf(c *inner.Checkpoint) []UnreadWeight {
	all := []UnreadWeight{}
	for _, u := range inner.UnreadableOf(c) {
		all = append(all, UnreadWeight{u.Name, u.Scheme, u.Err.Error()})
	}
	return all
}

// Same reports whether both checkpoints have the same tensors with the same values.
func (r *CheckpointComparison) Same() bool { return r.Identical == len(r.Tensors) }

func (r *CheckpointComparison) add(t CheckpointTensor) {
	switch t.Status {
	case Identical:
		r.Identical++
	case Changed:
		r.Changed++
	case Reshaped:
		r.Reshaped++
	case OnlyA:
		r.OnlyA++
	case OnlyB:
		r.OnlyB++
	}
	r.Tensors = append(r.Tensors, t)
}

// compare compares a tensor that both checkpoints have.
func (t *CheckpointTensor) compare(ctx context.Context, p *pair, o *CompareOptions) error {
	t.ShapeB, t.DTypeB = p.tuned.ref.Tensor.Shape, p.tuned.stored()
	switch {
	case !slices.Equal(t.ShapeA, t.ShapeB):
		t.Status = Reshaped
		o.progress(p.base.ref.Tensor.NBytes)
		return nil
	case !p.base.dtype().IsFloat() || !p.tuned.dtype().IsFloat():
		return t.compareBytes(ctx, p, o)
	}
	total := p.base.ref.Tensor.Elements()
	parts := make([]pieceDifference, (total+pieceElements-1)/pieceElements)
	nWorkers := parallel.Workers(o.Workers)
	scratch := make([]differenceScratch, nWorkers)
	err := parallel.For(ctx, nWorkers, len(parts), func(w, i int) error {
		first := int64(i) * pieceElements
		n := min(pieceElements, total-first)
		if err := parts[i].read(ctx, p, first, int(n), &scratch[w]); err != nil {
			return err
		}
		o.progress(n * int64(p.base.dtype().Size()))
		return nil
	})
	if err != nil {
		return err
	}
	var sum pieceDifference
	for _, d := range parts {
		sum.squares, sum.base, sum.most = sum.squares+d.squares, sum.base+d.base, max(sum.most, d.most)
		sum.elements, sum.nonFinite = sum.elements+d.elements, sum.nonFinite+d.nonFinite
	}
	t.Status, t.base = Identical, sum.base
	if sum.elements > 0 {
		t.Status = Changed
	}
	t.Norm, t.Max, t.Elements, t.NonFinite = math.Sqrt(sum.squares), sum.most, sum.elements, sum.nonFinite
	if sum.base > 0 {
		t.Relative = math.Sqrt(sum.squares / sum.base)
	}
	return nil
}

// compareBytes compares tensors of other dtypes than floats.
func (t *CheckpointTensor) compareBytes(ctx context.Context, p *pair, o *CompareOptions) error {
	same, err := p.equal(ctx)
	o.progress(p.base.ref.Tensor.NBytes)
	if t.Status = Changed; same {
		t.Status = Identical
	}
	return err
}

// pieceDifference is the difference of one piece of a tensor.
type pieceDifference struct {
	squares, base, most float64
	elements, nonFinite int64
}

type differenceScratch struct {
	a, b   []byte
	va, vb []float64
}

// read compares n elements from first on.
func (d *pieceDifference) read(ctx context.Context, p *pair, first int64, n int, s *differenceScratch) error {
	if s.a == nil {
		s.a, s.b = make([]byte, 8*pieceElements), make([]byte, 8*pieceElements)
		s.va, s.vb = make([]float64, pieceElements), make([]float64, pieceElements)
	}
	a, err := p.base.bytes(ctx, s.a, first, n)
	if err != nil {
		return err
	}
	b, err := p.tuned.bytes(ctx, s.b, first, n)
	if err != nil {
		return err
	}
	va, vb := s.va[:n], s.vb[:n]
	dtype.Widen64(va, p.base.dtype(), a)
	if p.base.dtype() == p.tuned.dtype() && bytes.Equal(a, b) {
		for _, v := range va {
			if v-v == 0 {
				d.base += v * v
			}
		}
		return nil
	}
	dtype.Widen64(vb, p.tuned.dtype(), b)
	for i, v := range va {
		d.element(v, vb[i])
	}
	return nil
}

func (d *pieceDifference) element(v, w float64) {
	isFinite := v-v == 0 && w-w == 0
	if isFinite {
		d.base += v * v
	}
	if v == w || v != v && w != w {
		return
	}
	d.elements++
	if !isFinite {
		d.nonFinite++
		return
	}
	x := w - v
	d.squares += x * x
	d.most = max(d.most, math.Abs(x))
}
