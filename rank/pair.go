package rank

import (
	"bytes"
	"context"
	"io"
	"math"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/parallel"
)

// pair is one tensor in both checkpoints, of the same shape.
type pair struct {
	name        string
	base, tuned located
}

// located is a tensor and the file that holds it.
type located struct {
	file *checkpoint.File
	ref  checkpoint.Ref
}

func (l located) dtype() dtype.Type { return l.ref.Tensor.DType }

// read reads elements first … first+n as float64.
func (l located) read(dst []float64, buf []byte, first int64) error {
	d := l.dtype()
	size := int64(d.Size())
	p := buf[:int64(len(dst))*size]
	at := l.ref.Tensor.Off + first*size
	if _, err := io.ReadFull(io.NewSectionReader(l.file.Data, at, int64(len(p))), p); err != nil {
		return fault.InFile(err, l.file.Path)
	}
	dtype.Widen64(dst, d, p)
	return nil
}

// pieceElements is how many elements of a tensor are read at a time. The pieces are fixed, so that sums over them do not
// depend on the number of workers.
const pieceElements = 1 << 17

// equal compares the bytes of a tensor in both checkpoints.
func (p *pair) equal(ctx context.Context) (bool, error) {
	a, b := p.base, p.tuned
	if a.dtype() != b.dtype() {
		return false, nil
	}
	n := a.ref.Tensor.NBytes
	const piece = 1 << 18
	bufA, bufB := make([]byte, min(n, piece)), make([]byte, min(n, piece))
	for off := int64(0); off < n; off += piece {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		k := min(piece, n-off)
		for _, x := range []struct {
			l   located
			buf []byte
		}{{a, bufA}, {b, bufB}} {
			if _, err := io.ReadFull(io.NewSectionReader(x.l.file.Data, x.l.ref.Tensor.Off+off, k), x.buf[:k]); err != nil {
				return false, fault.InFile(err, x.l.file.Path)
			}
		}
		if !bytes.Equal(bufA[:k], bufB[:k]) {
			return false, nil
		}
	}
	return true, nil
}

// update is Δ = tuned − base of one tensor, with what was seen on the way.
type update struct {
	dense    *Dense
	energy   float64 // ‖Δ‖_F²
	baseNorm float64 // ‖W‖_F
	noise    float64 // standard deviation per element that the rounding of the tuned checkpoint leaves
}

// difference forms Δ in float32 as an m×n matrix: each element is the float64 difference, rounded once. The difference of two
// 16-bit values is nearly always exact in float32.
func (p *pair) difference(ctx context.Context, m, n, workers int) (*update, error) {
	total := m * n
	u := &update{dense: &Dense{M: m, N: n, Data: make([]float32, total), Workers: workers}}
	type sums struct {
		base, noise float64
		bad         int
	}
	parts := make([]sums, blocks(total, pieceElements))
	nWorkers := parallel.Workers(workers)
	scratch := make([]struct {
		a, b []float64
		buf  []byte
	}, nWorkers)
	err := parallel.For(ctx, nWorkers, len(parts), func(worker, i int) error {
		s := &scratch[worker]
		if s.buf == nil {
			s.a, s.b, s.buf = make([]float64, pieceElements), make([]float64, pieceElements), make([]byte, 8*pieceElements)
		}
		first := i * pieceElements
		k := min(pieceElements, total-first)
		a, b := s.a[:k], s.b[:k]
		if err := p.base.read(a, s.buf, int64(first)); err != nil {
			return err
		}
		if err := p.tuned.read(b, s.buf, int64(first)); err != nil {
			return err
		}
		dst := u.dense.Data[first:][:k]
		d := p.tuned.dtype()
		for j := range dst {
			diff := b[j] - a[j]
			if diff-diff != 0 {
				parts[i].bad++
			}
			dst[j] = float32(diff)
			parts[i].base += a[j] * a[j]
			if step := ulp(d, b[j]); diff != 0 {
				parts[i].noise += step * step / 12
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var sum sums
	for _, s := range parts {
		sum.base, sum.noise, sum.bad = sum.base+s.base, sum.noise+s.noise, sum.bad+s.bad
	}
	if sum.bad > 0 {
		return nil, fault.New(fault.Corrupt, "%d values of %q are NaN or infinite in one of the checkpoints", sum.bad, p.name).
			WithHint("leave the tensor out with --exclude, or repair the checkpoint")
	}
	u.baseNorm = norm(sum.base)
	if total > 0 {
		u.noise = math.Sqrt(sum.noise / float64(total))
	}
	u.energy, err = u.dense.SumSquares(ctx)
	return u, err
}

// ulp is the distance between neighbouring values of a 16-bit type at x, and 0 for wider types, whose rounding does not
// matter here.
func ulp(d dtype.Type, x float64) float64 {
	var precision, lowest int
	switch d {
	case dtype.BF16:
		precision, lowest = 8, -133
	case dtype.F16:
		precision, lowest = 11, -24
	default:
		return 0
	}
	if x == 0 {
		return math.Ldexp(1, lowest)
	}
	_, e := math.Frexp(x) // |x| in [2^(e−1), 2^e)
	return math.Ldexp(1, max(e-precision, lowest))
}
