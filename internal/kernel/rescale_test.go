package kernel

import (
	"bytes"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

const oracleBits = 400

// rescaledExactly is the oracle of DoRA: m·v/‖v‖ to 400 bits.
func (p *problem) rescaledExactly(magnitude []float64, ofColumns bool) []*big.Float {
	v := make([]*big.Float, p.rows*p.cols)
	squares := make([]*big.Float, len(magnitude))
	group := func(i int) int {
		if ofColumns {
			return i % p.cols
		}
		return i / p.cols
	}
	for i := range v {
		sum, _ := p.exact(i/p.cols, i%p.cols)
		v[i] = new(big.Float).SetPrec(oracleBits).SetRat(sum)
		if squares[group(i)] == nil {
			squares[group(i)] = new(big.Float).SetPrec(oracleBits)
		}
		s := squares[group(i)]
		s.Add(s, new(big.Float).SetPrec(oracleBits).Mul(v[i], v[i]))
	}
	for i := range v {
		g := group(i)
		v[i].Mul(v[i], new(big.Float).SetFloat64(magnitude[g]))
		v[i].Quo(v[i], new(big.Float).SetPrec(oracleBits).Sqrt(squares[g]))
	}
	return v
}

// rescale runs DoRA on rows of the problem in blocks of several rows.
func (p *problem) rescale(magnitude []float64, ofColumns bool, blockRows int) []byte {
	terms := make([]Term[float64], len(p.terms))
	for i, t := range p.terms {
		terms[i] = Term[float64]{S: t.s, Rank: t.rank, L: t.l, R: t.r}
	}
	var s RescaleScratch
	w := p.bytes()
	line := p.cols * p.d.Size()
	var norms ColumnNorms
	if ofColumns {
		parts := []ColumnSquares{make(ColumnSquares, p.cols), make(ColumnSquares, p.cols)}
		u := PrepareRescaled(p.d, p.rows, p.cols, terms, magnitude, nil)
		half := p.rows / 2
		for row := 0; row < p.rows; {
			part, end := 0, half
			if row >= half {
				part, end = 1, p.rows
			}
			next := min(row+blockRows, end)
			u.AddSquares(parts[part], w[row*line:next*line], row, &s)
			row = next
		}
		norms = Norms(parts)
	}
	u := PrepareRescaled(p.d, p.rows, p.cols, terms, magnitude, norms)
	var st Stats
	for row := 0; row < p.rows; row += blockRows {
		u.Merge(w[row*line:min(row+blockRows, p.rows)*line], row, &st, &s)
	}
	return w
}

// TestRescaledIsWithinAnUlp keeps the promise for DoRA: every element within 1 ulp of RN of the exact value, and 99.99 % equal
// to it, for rows and columns and every dtype; and the same bytes for blocks of any size.
func TestRescaledIsWithinAnUlp(t *testing.T) {
	const rows, cols, rank = 90, 113, 5
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32, dtype.F64} {
		for _, ofColumns := range []bool{false, true} {
			rng := rand.New(rand.NewPCG(7, uint64(d)))
			p := &problem{d: d, rows: rows, cols: cols, w: make([]float64, rows*cols)}
			var b [8]byte
			normal := func(n int, std float64, d dtype.Type) []float64 {
				x := make([]float64, n)
				for i := range x {
					dtype.Store(d, b[:], 0, rng.NormFloat64()*std)
					x[i] = dtype.Load(d, b[:], 0)
				}
				return x
			}
			copy(p.w, normal(rows*cols, 0.05, d))
			p.terms = []plainTerm{{s: 1.7, rank: rank, l: normal(rows*rank, 0.1, dtype.F32), r: normal(rank*cols, 0.1, dtype.F32)}}
			n := rows
			if ofColumns {
				n = cols
			}
			magnitude := normal(n, 1, dtype.F32)
			got := p.rescale(magnitude, ofColumns, rows)
			if other := p.rescale(magnitude, ofColumns, 7); !bytes.Equal(got, other) {
				t.Errorf("%v, of columns %v: the bytes depend on the size of blocks", d, ofColumns)
			}
			wrong := 0
			for i, exact := range p.rescaledExactly(magnitude, ofColumns) {
				var want [8]byte
				storeExact(d, want[:], exact)
				g, x := dtype.Load(d, got, i), dtype.Load(d, want[:], 0)
				if g == x {
					continue
				}
				wrong++
				if up, down := neighbour(d, x, true), neighbour(d, x, false); g != up && g != down {
					t.Fatalf("%v, of columns %v, element %d: %v, want %v within 1 ulp", d, ofColumns, i, g, x)
				}
			}
			if share := float64(wrong) / (rows * cols); share > 1e-4 {
				t.Errorf("%v, of columns %v: %d of %d elements are not RN of the exact value, want 0.01 %% at most", d, ofColumns, wrong, rows*cols)
			}
		}
	}
}

// neighbour is the next value of d above or below x, which is not 0.
func neighbour(d dtype.Type, x float64, up bool) float64 {
	var b, c [8]byte
	dtype.Store(d, b[:], 0, x)
	c = b
	step := 1
	if (x > 0) != up {
		step = -1
	}
	for i := range d.Size() {
		n := int(c[i]) + step
		c[i] = byte(n)
		if n >= 0 && n <= 255 {
			break
		}
	}
	return dtype.Load(d, c[:], 0)
}

func TestRescaledOfAZeroRowIsNaN(t *testing.T) {
	p := &problem{d: dtype.F32, rows: 1, cols: 3, w: make([]float64, 3)}
	for _, ofColumns := range []bool{false, true} {
		got := p.rescale([]float64{1, 1, 1}, ofColumns, 1)
		for i := range 3 {
			if x := dtype.Load(p.d, got, i); !math.IsNaN(x) {
				t.Errorf("element %d of a row without a direction is %v, want NaN", i, x)
			}
		}
	}
}
