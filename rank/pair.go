package rank

import (
	"bytes"
	"cmp"
	"context"
	"math"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/parallel"
)

// pair is one tensor of the same shape in both checkpoints.
type pair struct {
	name        string
	base, tuned located
}

// located is a tensor of a checkpoint, or several of equal size read one after the other as one.
type located struct {
	ref   checkpoint.Ref
	parts []located // replaces ref's data; nil for a single tensor
}

// stacked joins tensors of equal dtype and size into one with the given name and shape.
func stacked(name string, shape []uint64, parts []located) located {
	whole := parts[0]
	t := *whole.ref.Tensor
	t.Name, t.Shape, t.NBytes = name, shape, t.NBytes*int64(len(parts))
	whole.ref.Tensor, whole.parts = &t, parts
	return whole
}

func (l located) dtype() dtype.Type { return l.ref.Tensor.DType }

// stored names the dtype, or the scheme of a quantised tensor.
func (l located) stored() string { return cmp.Or(l.ref.Tensor.Scheme, l.dtype().String()) }

// bytes reads n elements, starting at first, into buf.
func (l located) bytes(ctx context.Context, buf []byte, first int64, n int) ([]byte, error) {
	size := int64(l.dtype().Size())
	p := buf[:int64(n)*size]
	if l.parts != nil {
		each := l.parts[0].ref.Tensor.Elements()
		for rest := p; len(rest) > 0; {
			k := int(min(each-first%each, int64(len(rest))/size))
			if _, err := l.parts[first/each].bytes(ctx, rest, first%each, k); err != nil {
				return nil, err
			}
			first, rest = first+int64(k), rest[int64(k)*size:]
		}
		return p, nil
	}
	return p, l.ref.Tensor.ReadAt(ctx, p, first*size)
}

// pieceElements is the number of elements of a tensor that are read together. It is fixed, so that
// sums do not depend on the number of workers.
const pieceElements = 1 << 17

// equal compares the bytes of the tensor in both checkpoints.
func (p *pair) equal(ctx context.Context) (bool, error) {
	a, b := p.base, p.tuned
	if a.dtype() != b.dtype() {
		return false, nil
	}
	total := a.ref.Tensor.Elements()
	size := a.dtype().Size()
	const piece = 1 << 17 // elements
	bufA, bufB := make([]byte, size*int(min(total, piece))),
		make([]byte, size*int(min(total, piece)))
	for first := int64(0); first < total; first += piece {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		k := int(min(piece, total-first))
		x, err := a.bytes(ctx, bufA, first, k)
		if err != nil {
			return false, err
		}
		y, err := b.bytes(ctx, bufB, first, k)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(x, y) {
			return false, nil
		}
	}
	return true, nil
}

// update is Δ = tuned − base of one tensor, with statistics.
type update struct {
	dense    *Dense
	energy   float64 // ‖Δ‖_F²
	baseNorm float64 // ‖W‖_F
	// standard deviation, per element, of the rounding in the tuned checkpoint
	noise    float64
	tooSmall int // nonzero differences that are zero in float32
	// Δ is known to have no element below leastElement but zeros
	isPlain bool
}

// seen is one piece's contribution to an update.
type seen struct {
	energy, base, noise float64 // Σ of squares: of δ, of w, and of the units in the last place of w′
	nonFinite           int     // NaN or infinite in either checkpoint
	tooLarge            int     // finite differences beyond float32
	tooSmall            int     // nonzero differences that are zero in float32
	// no difference but zeros is known to be below leastElement
	isPlain bool
}

// room is the memory in which differences are formed, one after the other: each takes the place of
// the last.
type room struct {
	workers int // goroutines; 0 means one per processor
	delta   []float32
	scratch []pieceScratch // one per worker
}

// matrix returns an m×n matrix with any content.
func (r *room) matrix(m, n int) *Dense {
	if cap(r.delta) < m*n {
		r.delta = nil // before the allocation, so that both need not be in memory
		r.delta = make([]float32, m*n)
	}
	return &Dense{M: m, N: n, Data: r.delta[:m*n], Workers: r.workers}
}

// difference forms Δ in float32 as an m×n matrix, starting at the tensor's element start. Each
// element is the exact difference, rounded once. Differences of 16-bit values are nearly always
// exact in float32.
func (p *pair) difference(ctx context.Context, start int64, m, n int, in *room) (*update, error) {
	total := m * n
	u := &update{dense: in.matrix(m, n)}
	parts := make([]seen, blocks(total, pieceElements))
	if in.scratch == nil {
		in.scratch = make([]pieceScratch, parallel.Workers(in.workers))
	}
	err := parallel.For(ctx, len(in.scratch), len(parts), func(worker, i int) error {
		first := i * pieceElements
		return p.piece(ctx, u.dense.Data[first:min(first+pieceElements, total)], start+int64(first),
			&in.scratch[worker], &parts[i])
	})
	if err != nil {
		return nil, err
	}
	sum := seen{isPlain: true}
	for _, s := range parts {
		sum.energy, sum.base, sum.noise = sum.energy+s.energy, sum.base+s.base, sum.noise+s.noise
		sum.nonFinite, sum.tooLarge, sum.tooSmall = sum.nonFinite+s.nonFinite,
			sum.tooLarge+s.tooLarge, sum.tooSmall+s.tooSmall
		sum.isPlain = sum.isPlain && s.isPlain
	}
	if err := p.refuse(&sum); err != nil {
		return nil, err
	}
	u.energy, u.baseNorm, u.tooSmall, u.isPlain = sum.energy, norm(sum.base), sum.tooSmall, sum.isPlain
	if total > 0 {
		u.noise = math.Sqrt(sum.noise / 12 / float64(total)) // of an error anywhere in a unit
	}
	return u, nil
}

// refuse returns the error for an update that cannot be decomposed, else nil.
func (p *pair) refuse(sum *seen) error {
	switch {
	case sum.nonFinite > 0:
		return nonFiniteError(p.name, sum.nonFinite)
	case sum.tooLarge > 0:
		return fault.New(fault.Unsupported,
			"%s of %q %s beyond float32, the precision of the decomposition",
			fault.Count(sum.tooLarge, "difference"), p.name, fault.Choose(sum.tooLarge, "is", "are")).
			WithHint("check that the two checkpoints belong together, or leave the tensor out with ExtractOptions.Exclude")
	case norm(sum.energy) > maxNorm:
		return fault.New(fault.Unsupported,
			"the update of %q has the norm %.3g, but the decomposition in float32 takes at most %.3g", p.name,
			norm(sum.energy), maxNorm).
			WithHint("check that the two checkpoints belong together, or leave the tensor out with ExtractOptions.Exclude")
	}
	return nil
}

// maxNorm bounds ‖Δ‖_F: the decomposition forms Δᵀ·Δ·V in float32, whose elements are at most ‖Δ‖².
const maxNorm = 0x1p63

func nonFiniteError(tensor string, n int) error {
	return fault.New(fault.Corrupt, "%s of %q %s NaN or infinite in one of the checkpoints",
		fault.Count(n, "value"), tensor, fault.Choose(n, "is", "are")).
		WithHint("leave the tensor out with ExtractOptions.Exclude, or repair the checkpoint")
}

// pieceScratch holds the buffers of a worker.
type pieceScratch struct {
	tuned, base []byte
	narrow      []float32
	a, b        []float64
}

// bytes returns buffers for the stored values of n elements of both checkpoints.
func (s *pieceScratch) bytes(n int) (tuned, base []byte) {
	if len(s.tuned) < 8*n {
		s.tuned, s.base = make([]byte, 8*n), make([]byte, 8*n)
	}
	return s.tuned, s.base
}

// piece forms the elements of Δ, starting at first.
func (p *pair) piece(ctx context.Context, dst []float32, first int64, s *pieceScratch, out *seen) error {
	tunedBuf, baseBuf := s.bytes(len(dst))
	tuned, err := p.tuned.bytes(ctx, tunedBuf, first, len(dst))
	if err != nil {
		return err
	}
	base, err := p.base.bytes(ctx, baseBuf, first, len(dst))
	if err != nil {
		return err
	}
	if p.base.dtype() == dtype.F64 || p.tuned.dtype() == dtype.F64 {
		p.widePiece(dst, tuned, base, s, out)
		return nil
	}
	sums := kernel.Difference(dst, p.tuned.dtype(), tuned, p.base.dtype(), base)
	out.energy, out.base, out.noise, out.isPlain = sums.Energy, sums.Base, sums.Units, sums.IsPlain
	if sums.Energy-sums.Energy != 0 {
		p.count(dst, tuned, base, s, out)
	}
	return nil
}

// count examines a piece with infinite or NaN differences, and counts whether the values or only
// their differences are not finite. It overwrites dst, because the differences are no longer
// needed.
func (p *pair) count(dst []float32, tuned, base []byte, s *pieceScratch, out *seen) {
	if len(s.narrow) < len(dst) {
		s.narrow = make([]float32, len(dst))
	}
	w := s.narrow[:len(dst)]
	dtype.Widen(dst, p.tuned.dtype(), tuned)
	dtype.Widen(w, p.base.dtype(), base)
	for j, x := range dst {
		switch d := x - w[j]; {
		case x-x != 0 || w[j]-w[j] != 0:
			out.nonFinite++
		case d-d != 0:
			out.tooLarge++
		}
	}
}

// widePiece is piece for checkpoints of which one is in F64.
func (p *pair) widePiece(dst []float32, tuned, base []byte, s *pieceScratch, out *seen) {
	if len(s.a) < len(dst) {
		s.a, s.b = make([]float64, len(dst)), make([]float64, len(dst))
	}
	a, b := s.a[:len(dst)], s.b[:len(dst)]
	dtype.Widen64(a, p.base.dtype(), base)
	dtype.Widen64(b, p.tuned.dtype(), tuned)
	for j := range dst {
		d := b[j] - a[j]
		dst[j] = float32(d)
		switch {
		case a[j]-a[j] != 0 || b[j]-b[j] != 0:
			out.nonFinite++
		case dst[j]-dst[j] != 0:
			out.tooLarge++
		case dst[j] == 0 && d != 0:
			out.tooSmall++
		}
		out.energy += float64(dst[j]) * float64(dst[j])
		out.base += a[j] * a[j]
	}
	if d := p.tuned.dtype(); d != dtype.F64 {
		out.noise = kernel.UnitSquares(d, b)
	}
}
