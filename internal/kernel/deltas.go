package kernel

import (
	"context"
	"math"
	"math/big"

	"github.com/loratool/loratool/format/dtype"
)

// Deltas updates one matrix by sums that are no thin products (spec/METHODS.md): with v = w + Σ ΔW,
//
//	out = RN_D(v)        over the reals, rounded once to nearest even
//
// or, with magnitudes, m_g·v/‖v_g‖₂, where g is the row, or the columns that read one input. A sum
// in float64 comes with a bound on its error, and an exact sum decides where the bound does not.
// With magnitudes out is that number rounded, or a neighbour of it. Any number of goroutines may
// use a Deltas; the result does not depend on how calls group the rows.
type Deltas struct {
	d          dtype.Type
	rows, cols int
	parts      []DeltaRows
	magnitude  []float64 // nil without DoRA
	kernel     int       // columns of an input, for magnitudes of inputs; 0 for those of rows
	norms      []float64 // per input
}

// Delta is a ΔW that is computed row by row.
type Delta interface {
	// AddRow adds row i to dst. w is the same row of the weight. most is the largest magnitude that
	// an element can have, and err the largest difference between one that is added and the exact
	// one. Both are 0 only for a row of zeros. buf keeps memory between calls of one goroutine.
	AddRow(dst, w []float64, i int, buf *[]float64) (most, err float64)
	// AddExact adds an element to sum without rounding, or returns it if it is NaN or infinite.
	AddExact(sum *big.Float, w float64, i, j int) (special float64)
}

// DeltaRows is a ΔW whose rows from From on, Count of them, change the rows of the matrix from At
// on.
type DeltaRows struct {
	Delta
	At, From, Count int
}

// DeltaScratch holds a worker's buffers. The zero value is ready to use.
type DeltaScratch struct{ w, delta, buf []float64 }

// NewDeltas prepares an update of a rows×cols matrix of dtype d. It keeps its arguments.
func NewDeltas(d dtype.Type, rows, cols int, parts []DeltaRows) *Deltas {
	return &Deltas{d: d, rows: rows, cols: cols, parts: parts}
}

// Rescale adds magnitudes: one for each row if kernel is 0, else one for each input, which kernel
// columns read. Those of inputs also need the norms, one for each input.
func (u *Deltas) Rescale(magnitude []float64, kernel int, norms []float64) {
	u.magnitude, u.kernel, u.norms = magnitude, kernel, norms
}

// Merge updates whole rows of the matrix in place, beginning with row row0. The only error is that
// of a context that has ended; then w may be half updated.
func (u *Deltas) Merge(ctx context.Context, w []byte, row0 int, st *Stats, s *DeltaScratch) error {
	line := u.cols * u.d.Size()
	if line == 0 {
		return ctx.Err()
	}
	nRows := len(w) / line
	if len(w)%line != 0 || row0 < 0 || row0+nRows > u.rows {
		panic("kernel: not rows of the matrix")
	}
	st.Elements += int64(nRows * u.cols)
	for i := range nRows {
		if err := ctx.Err(); err != nil {
			return err
		}
		row := w[i*line : (i+1)*line]
		most, e := u.row(row, row0+i, s)
		if u.magnitude != nil {
			u.rescaleRow(row, row0+i, st, s)
			continue
		}
		if err := u.addRow(ctx, row, row0+i, most, e, st, s); err != nil {
			return err
		}
	}
	return nil
}

// row computes a row of w and of Σ ΔW. An element of the sum is at most most large, and at most e
// away from the exact one.
func (u *Deltas) row(w []byte, i int, s *DeltaScratch) (most, e float64) {
	if len(s.w) != u.cols {
		s.w, s.delta = make([]float64, u.cols), make([]float64, u.cols)
	}
	dtype.Widen64(s.w, u.d, w)
	clear(s.delta)
	n := 0
	for _, p := range u.parts {
		if i < p.At || i >= p.At+p.Count {
			continue
		}
		m, err := p.AddRow(s.delta, s.w, i-p.At+p.From, &s.buf)
		most, e = most+m, e+err
		n++
	}
	// Each addition to the sum has rounded once.
	return most, e + float64(n)*0x1p-52*(most+e)
}

// addRow rounds one row of w + Σ.
func (u *Deltas) addRow(
	ctx context.Context, w []byte, i int, most, e float64, st *Stats, s *DeltaScratch,
) error {
	size := u.d.Size()
	narrow := narrowingOf(u.d)
	for j, before := range s.w {
		sum := s.delta[j]
		if most == 0 && e == 0 {
			account(st, before, 0, before)
			continue
		}
		out, x := w[j*size:(j+1)*size], before+sum
		bound := e + 0x1p-52*math.Abs(x)
		if narrow != nil {
			if after, bits, ok := narrow.round(x, bound); ok {
				narrow.put(out, bits)
				account(st, before, sum, after)
				continue
			}
		}
		st.Slow++
		if !(math.Abs(x)+bound <= math.MaxFloat64) || !storeWithin(u.d, out, x, bound) {
			if err := ctx.Err(); err != nil {
				return err
			}
			st.Exact++
			u.storeExactly(out, i, j, before)
		}
		account(st, before, sum, dtype.Load(u.d, out, 0))
	}
	return nil
}

// storeExactly stores RN_D(w + Σ) by an exact sum. An element whose Σ is 0 keeps its bits.
func (u *Deltas) storeExactly(out []byte, i, j int, w float64) {
	sum, special := newExact(), 0.0
	for _, p := range u.parts {
		if i >= p.At && i < p.At+p.Count {
			special += p.AddExact(sum, w, i-p.At+p.From, j)
		}
	}
	switch {
	case special != 0: // NaN, too
		dtype.Store(u.d, out, 0, w+special)
	case !isFinite(w) || sum.Sign() == 0:
	default:
		storeExact(u.d, out, sum.Add(sum, new(big.Float).SetFloat64(w)))
	}
}

// rescaleRow rescales one row of v. Elements and norms follow section 6.5 of spec/APPLY.md.
func (u *Deltas) rescaleRow(w []byte, i int, st *Stats, s *DeltaScratch) {
	for j, x := range s.w {
		s.delta[j] += x // v
	}
	var m, norm float64
	if u.kernel == 0 {
		var sum double
		for _, v := range s.delta {
			sum = sum.plusSquare(v, 0)
		}
		m, norm = u.magnitude[i], sum.sqrt().hi
	}
	size := u.d.Size()
	for j, v := range s.delta {
		if u.kernel > 0 {
			m, norm = u.magnitude[j/u.kernel], u.norms[j/u.kernel]
		}
		before, x := s.w[j], m*v/norm
		out := w[j*size : (j+1)*size]
		dtype.Store(u.d, out, 0, x)
		account(st, before, x-before, dtype.Load(u.d, out, 0))
	}
}

// InputSquares holds Σ v² over some rows, per input.
type InputSquares []double

// AddSquares adds Σ v² over the rows of w, beginning with row row0, to the sum of each input that
// kernel columns read. The only error is that of a context that has ended.
func (u *Deltas) AddSquares(
	ctx context.Context, sums InputSquares, kernel int, w []byte, row0 int, s *DeltaScratch,
) error {
	line := u.cols * u.d.Size()
	for i := range len(w) / line {
		if err := ctx.Err(); err != nil {
			return err
		}
		u.row(w[i*line:(i+1)*line], row0+i, s)
		for j, x := range s.w {
			sums[j/kernel] = sums[j/kernel].plusSquare(x+s.delta[j], 0)
		}
	}
	return nil
}

// InputNorms adds up the sums over all rows and returns the norms.
func InputNorms(parts []InputSquares) []float64 {
	norms := make([]float64, len(parts[0]))
	for j := range norms {
		var sum double
		for _, p := range parts {
			sum = sum.plus(p[j])
		}
		norms[j] = sum.sqrt().hi
	}
	return norms
}
