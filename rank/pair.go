package rank

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
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
	energy, base, noise float64
	nonFinite           int // NaN or infinite in either checkpoint
	tooLarge            int // finite differences beyond float32
	tooSmall            int // nonzero differences that are zero in float32
	tiny                int // differences below leastElement that are not zero, or not counted
}

// difference forms Δ in float32 as an m×n matrix, starting at the tensor's element start. Each
// element is the exact difference, rounded once. Differences of 16-bit values are nearly always
// exact in float32.
func (p *pair) difference(ctx context.Context, start int64, m, n, workers int) (*update, error) {
	total := m * n
	u := &update{dense: &Dense{M: m, N: n, Data: make([]float32, total), Workers: workers}}
	parts := make([]seen, blocks(total, pieceElements))
	nWorkers := parallel.Workers(workers)
	scratch := make([]pieceScratch, nWorkers)
	err := parallel.For(ctx, nWorkers, len(parts), func(worker, i int) error {
		first := i * pieceElements
		return p.piece(ctx, u.dense.Data[first:min(first+pieceElements, total)], start+int64(first),
			&scratch[worker], &parts[i])
	})
	if err != nil {
		return nil, err
	}
	var sum seen
	for _, s := range parts {
		sum.energy, sum.base, sum.noise = sum.energy+s.energy, sum.base+s.base, sum.noise+s.noise
		sum.nonFinite, sum.tooLarge, sum.tooSmall = sum.nonFinite+s.nonFinite,
			sum.tooLarge+s.tooLarge, sum.tooSmall+s.tooSmall
		sum.tiny += s.tiny
	}
	if err := p.refuse(&sum); err != nil {
		return nil, err
	}
	u.energy, u.baseNorm, u.tooSmall, u.isPlain = sum.energy, norm(sum.base), sum.tooSmall, sum.tiny == 0
	if total > 0 {
		u.noise = math.Sqrt(sum.noise / float64(total))
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
	buf    []byte
	narrow []float32
	a, b   []float64
}

// piece forms the elements of Δ, starting at first.
func (p *pair) piece(ctx context.Context, dst []float32, first int64, s *pieceScratch, out *seen) error {
	if s.buf == nil {
		s.buf, s.narrow = make([]byte, 8*pieceElements), make([]float32, pieceElements)
	}
	if p.base.dtype() == dtype.F64 || p.tuned.dtype() == dtype.F64 {
		if s.a == nil {
			s.a, s.b = make([]float64, pieceElements), make([]float64, pieceElements)
		}
		return p.widePiece(ctx, dst, first, s, out)
	}
	// Read the tuned values, then the base's into the same buffer. Float32 subtraction rounds the
	// exact difference once.
	tuned, err := p.tuned.bytes(ctx, s.buf, first, len(dst))
	if err != nil {
		return err
	}
	dtype.Widen(dst, p.tuned.dtype(), tuned)
	out.noise = roundingNoise(p.tuned.dtype(), tuned)
	base, err := p.base.bytes(ctx, s.buf, first, len(dst))
	if err != nil {
		return err
	}
	w := s.narrow[:len(dst)]
	dtype.Widen(w, p.base.dtype(), base)
	out.energy, out.base, out.tiny = subtract(dst, w)
	if sum := out.energy; sum-sum != 0 {
		return p.count(ctx, dst, w, first, s, out)
	}
	return nil
}

// count examines a piece with infinite or NaN differences, and counts whether the values or only
// their differences are not finite. w holds the base's values. It rereads the tuned values into
// dst, because the differences are no longer needed.
func (p *pair) count(ctx context.Context, dst, w []float32, first int64, s *pieceScratch, out *seen) error {
	tuned, err := p.tuned.bytes(ctx, s.buf, first, len(dst))
	if err != nil {
		return err
	}
	dtype.Widen(dst, p.tuned.dtype(), tuned)
	for j, x := range dst {
		switch d := x - w[j]; {
		case x-x != 0 || w[j]-w[j] != 0:
			out.nonFinite++
		case d-d != 0:
			out.tooLarge++
		}
	}
	return nil
}

// isTiny reports whether a number is below leastElement, and not zero.
func isTiny(x float32) bool {
	const least = (127 - 60) << 24 // the bits of leastElement without the sign, twice
	return math.Float32bits(x)<<1-1 < least-1
}

// subtract subtracts w from dst and returns the sums of the squares of both. Each has four running
// sums, which a processor can update in parallel. tiny is not 0 if differences are tiny.
func subtract(dst, w []float32) (energy, base float64, tiny int) {
	var e0, e1, e2, e3, b0, b1, b2, b3 float64
	w = w[:len(dst)]
	j := 0
	for ; j+4 <= len(dst); j += 4 {
		d, x := dst[j:j+4:j+4], w[j:j+4:j+4]
		d0, d1, d2, d3 := d[0]-x[0], d[1]-x[1], d[2]-x[2], d[3]-x[3]
		d[0], d[1], d[2], d[3] = d0, d1, d2, d3
		if isTiny(d0) || isTiny(d1) || isTiny(d2) || isTiny(d3) {
			tiny++
		}
		e0 += float64(d0) * float64(d0)
		e1 += float64(d1) * float64(d1)
		e2 += float64(d2) * float64(d2)
		e3 += float64(d3) * float64(d3)
		b0 += float64(x[0]) * float64(x[0])
		b1 += float64(x[1]) * float64(x[1])
		b2 += float64(x[2]) * float64(x[2])
		b3 += float64(x[3]) * float64(x[3])
	}
	for ; j < len(dst); j++ {
		dst[j] -= w[j]
		e0 += float64(dst[j]) * float64(dst[j])
		b0 += float64(w[j]) * float64(w[j])
		if isTiny(dst[j]) {
			tiny++
		}
	}
	return e0 + e1 + e2 + e3, b0 + b1 + b2 + b3, tiny
}

// widePiece is piece for checkpoints in F64.
func (p *pair) widePiece(ctx context.Context, dst []float32, first int64, s *pieceScratch, out *seen) error {
	a, b := s.a[:len(dst)], s.b[:len(dst)]
	for _, x := range []struct {
		from *located
		to   []float64
	}{{&p.base, a}, {&p.tuned, b}} {
		raw, err := x.from.bytes(ctx, s.buf, first, len(dst))
		if err != nil {
			return err
		}
		dtype.Widen64(x.to, x.from.dtype(), raw)
		if x.from == &p.tuned {
			out.noise = roundingNoise(p.tuned.dtype(), raw)
		}
	}
	out.tiny = 1 // not counted
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
	return nil
}

// roundingNoise returns Σ ulp²/12 over the elements, or 0 for dtypes other than 16 and 32 bits. It
// counts exponents, since there are few.
func roundingNoise(d dtype.Type, raw []byte) (sum float64) {
	l, ok := d.Layout()
	if !ok || l.Exponent > 8 {
		return 0
	}
	var count [256]int
	last := 1<<l.Exponent - 1 // the exponent of infinity and NaN
	if d.Size() == 4 {
		for ; len(raw) >= 4; raw = raw[4:] {
			count[int(binary.LittleEndian.Uint32(raw))>>l.Fraction&last]++
		}
	}
	for ; len(raw) >= 2; raw = raw[2:] {
		count[int(binary.LittleEndian.Uint16(raw))>>l.Fraction&last]++
	}
	for e, n := range count[:last] {
		ulp := math.Ldexp(1, max(e, 1)-l.Bias()-l.Fraction)
		sum += float64(n) * ulp * ulp / 12
	}
	return sum
}
