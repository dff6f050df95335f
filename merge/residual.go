package merge

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/principal"
	"github.com/loratool/loratool/internal/resolve"
)

// PiSSA and OLoRA initialise A and B from a part P of the weight and subtract P from the base, so
// the trained adapter fits W − P. On the original base its update is s·B·A − P. PEFT computes P in
// float32 and rounds W − P to the base's dtype; this package computes P in float64 and rounds the
// sum once.

// loadResidual computes the factors of a term −P.
func loadResidual[T kernel.Float](
	ctx context.Context, t *target, x *resolve.Term, k *tools,
) (kernel.Term[T], error) {
	nRows, nCols := t.Matrix()
	w, err := k.readWhole(ctx, t, int(nRows*nCols))
	if err != nil {
		return kernel.Term[T]{}, err
	}
	find := principal.Singular
	if x.Residual == resolve.OLoRAResidual {
		find = principal.Leading
	}
	part, err := find(ctx, w, int(nRows), int(nCols), x.Rank)
	if ctx.Err() != nil {
		return kernel.Term[T]{}, ctx.Err()
	}
	if errors.Is(err, principal.ErrOpen) {
		return kernel.Term[T]{}, fault.New(fault.Unsupported, "%q of the base has no single part of rank %d that its "+
			"initialisation can have subtracted: %v", t.ref.Tensor.Name, x.Rank, err).In(t.ref.Tensor.Path()).
			WithHint(resolve.AsOrdinaryLoRA)
	}
	if err != nil {
		return kernel.Term[T]{}, fault.New(fault.Check, "%q: %v", t.ref.Tensor.Name, err)
	}
	return kernel.Term[T]{S: x.Scale, Rank: part.Rank, L: floats[T](part.Left), R: floats[T](part.Right)}, nil
}

// readWhole reads the base's weight as float32: of a quantised one the exact values, whatever dtype
// the output gives it.
func (k *tools) readWhole(ctx context.Context, t *target, n int) ([]float32, error) {
	tensor := t.ref.Tensor
	read := func(p []byte, off int64) error {
		_, err := io.ReadFull(io.NewSectionReader(k.data[t.ref.File], tensor.Off+off, int64(len(p))), p)
		return fault.InFile(err, tensor.Path())
	}
	if t.exact != nil {
		tensor = t.exact
		read = func(p []byte, off int64) error { return tensor.ReadAt(ctx, p, off) }
	}
	w := make([]float32, n)
	size := tensor.DType.Size()
	piece := make([]byte, min(pieceBytes, n*size))
	for done := 0; done < n; {
		m := min(len(piece)/size, n-done)
		if err := read(piece[:m*size], int64(done*size)); err != nil {
			return nil, err
		}
		dtype.Widen(w[done:done+m], tensor.DType, piece[:m*size])
		if slices.ContainsFunc(w[done:done+m], func(v float32) bool { return v-v != 0 }) {
			return nil, fault.New(fault.Unsupported, "%q of the base holds NaN or infinity, so its principal part does not exist", tensor.Name).In(tensor.Path())
		}
		done += m
	}
	return w, nil
}

// floats converts a factor of P to the arithmetic of the pass. float64 needs no copy.
func floats[T kernel.Float](x []float64) []T {
	if same, ok := any(x).([]T); ok {
		return same
	}
	y := make([]T, len(x))
	for i, v := range x {
		y[i] = T(v)
	}
	return y
}
