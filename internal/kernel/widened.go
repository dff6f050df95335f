package kernel

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// A base whose values D cannot hold, such as a decoded one, is merged in lines of numbers of T. The
// micro-kernel puts results of D into them, in place of the base's values, and they are stored
// afterwards. In float32 the values of the base are rounded, and the bound pays for that; the slow
// pass has them as they are.

// widenedScratch holds a worker's buffers for such a base.
type widenedScratch struct {
	lines []byte    // numbers of T
	exact []float64 // the base's values
}

// widenedBytes is the amount of memory for the lines that are merged together. It stays in the
// second-level cache beside the base's values.
const widenedBytes = 128 << 10

// MergeFrom is Merge of an update from PrepareWidened. w holds the base's values and out receives
// the results, also of elements without an update: these are RN_D(w).
func (u *Update[T]) MergeFrom(
	ctx context.Context, out []byte, w []float64, row0 int, st *Stats, s *Scratch[T],
) error {
	size := u.d.Size()
	if u.cols == 0 {
		return ctx.Err()
	}
	nRows := len(w) / u.cols
	if !u.isWidened || len(w)%u.cols != 0 || len(out) != len(w)*size || row0 < 0 || row0+nRows > u.rows {
		panic("kernel: not rows of a widened matrix")
	}
	st.Elements += int64(len(w))
	tiles := max(1, widenedBytes/(u.cols*u.source.Size()*u.micro.rows))
	for step := tiles * u.micro.rows; nRows > 0; nRows -= step {
		n := min(step, nRows)
		if err := u.mergeLines(ctx, out[:n*u.cols*size], w[:n*u.cols], row0, st, s); err != nil {
			return err
		}
		out, w, row0 = out[n*u.cols*size:], w[n*u.cols:], row0+n
	}
	return nil
}

// mergeLines is MergeFrom for a few rows.
func (u *Update[T]) mergeLines(
	ctx context.Context, out []byte, w []float64, row0 int, st *Stats, s *Scratch[T],
) error {
	if u.rank == 0 {
		for j, x := range w {
			dtype.Store(u.d, out, j, x)
			account(st, x, 0, dtype.Load(u.d, out, j))
		}
		return ctx.Err()
	}
	b := &s.widened
	if n := len(w) * u.source.Size(); cap(b.lines) < n {
		b.lines = make([]byte, n)
	}
	lines := b.lines[:len(w)*u.source.Size()]
	b.exact = w
	squares := widenedSquares(w, st)
	fill[T](lines, w)
	err := u.lines(ctx, lines, row0, len(w)/u.cols, st, s)
	squares.replace(st)
	store(u.d, out, u.source, lines)
	return err
}

// settleWidened decides an element of the lines that the fast pass left.
func settleWidened[T Float](
	ctx context.Context, u *Update[T], lines []byte, row0, index int, st *Stats, s *Scratch[T],
) error {
	var room [8]byte
	w, out := s.widened.exact[index], room[:u.d.Size()]
	dtype.Store(u.d, out, 0, w)
	err := u.decide(ctx, w, out, row0+index/u.cols, index%u.cols, st)
	dtype.Store(u.source, lines, index, dtype.Load(u.d, out, 0))
	return err
}

// fill rounds values to T.
func fill[T Float](lines []byte, w []float64) {
	if isNarrow[T]() {
		lines = lines[:4*len(w)]
		for len(w) >= 4 { // the compiler then checks no index
			a, b := lines[:16:16], w[:4:4]
			binary.LittleEndian.PutUint32(a, math.Float32bits(float32(b[0])))
			binary.LittleEndian.PutUint32(a[4:], math.Float32bits(float32(b[1])))
			binary.LittleEndian.PutUint32(a[8:], math.Float32bits(float32(b[2])))
			binary.LittleEndian.PutUint32(a[12:], math.Float32bits(float32(b[3])))
			lines, w = lines[16:], w[4:]
		}
		for j, x := range w {
			binary.LittleEndian.PutUint32(lines[4*j:], math.Float32bits(float32(x)))
		}
		return
	}
	for j, x := range w {
		binary.LittleEndian.PutUint64(lines[8*j:], math.Float64bits(x))
	}
}

// store stores lines of numbers of source that are numbers of d too.
func store(d dtype.Type, out []byte, source dtype.Type, lines []byte) {
	switch {
	case source == dtype.F32 && d == dtype.BF16:
		for len(out) >= 8 {
			a, b := lines[:16:16], out[:8:8]
			low := binary.LittleEndian.Uint64(a)
			high := binary.LittleEndian.Uint64(a[8:])
			binary.LittleEndian.PutUint32(b, uint32(low>>16&0xffff|low>>32&0xffff0000))
			binary.LittleEndian.PutUint32(b[4:], uint32(high>>16&0xffff|high>>32&0xffff0000))
			lines, out = lines[16:], out[8:]
		}
		for j := range len(out) / 2 {
			binary.LittleEndian.PutUint16(out[2*j:], uint16(binary.LittleEndian.Uint32(lines[4*j:])>>16))
		}
	case source == dtype.F32:
		for j := range len(out) / 2 {
			x := math.Float32frombits(binary.LittleEndian.Uint32(lines[4*j:]))
			binary.LittleEndian.PutUint16(out[2*j:], dtype.F16FromFloat32(x))
		}
	case d == dtype.F32:
		out = out[:len(lines)/2]
		for len(lines) >= 16 {
			a, b := lines[:16:16], out[:8:8]
			binary.LittleEndian.PutUint32(b, math.Float32bits(float32(math.Float64frombits(binary.LittleEndian.Uint64(a)))))
			binary.LittleEndian.PutUint32(b[4:], math.Float32bits(float32(math.Float64frombits(binary.LittleEndian.Uint64(a[8:])))))
			lines, out = lines[16:], out[8:]
		}
		if len(lines) > 0 {
			dtype.Store(d, out, 0, math.Float64frombits(binary.LittleEndian.Uint64(lines)))
		}
	default:
		for j := range len(lines) / 8 {
			dtype.Store(d, out, j, math.Float64frombits(binary.LittleEndian.Uint64(lines[8*j:])))
		}
	}
}

// widenedSquares is baseSquares for a widened base.
func widenedSquares(w []float64, st *Stats) (o ofBase) {
	o = ofBase{before: st.NormW}
	for i := 0; i < len(w); i += sampleStep(len(w)) {
		if x := math.Abs(w[i]); x >= 0x1p-40 && x < 0x1p63 {
			return o
		}
	}
	o.known = true
	for _, x := range w {
		if isFinite(x) {
			o.sum.add(x)
		}
	}
	return o
}
