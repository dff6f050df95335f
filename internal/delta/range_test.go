package delta

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// table is a matrix of exact numbers.
type table struct {
	rows, cols int
	at         func(i, j int) *big.Rat
}

func rat(x float64) *big.Rat { return new(big.Rat).SetFloat64(x) }

// stored is a table of floats, row by row.
func stored(rows, cols int, x []float64) table {
	return table{rows, cols, func(i, j int) *big.Rat { return rat(x[i*cols+j]) }}
}

// tuckerOf is Σ x[i,p]·t[p,q,κ]·b[q,j], by the definition.
func tuckerOf(rows, rank, inputs, kernel int, x, t, b []float64) table {
	return table{rows, inputs * kernel, func(i, j int) *big.Rat {
		sum := new(big.Rat)
		for p := range rank {
			for q := range rank {
				v := rat(x[i*rank+p])
				v.Mul(v, rat(t[(p*rank+q)*kernel+j%kernel]))
				sum.Add(sum, v.Mul(v, rat(b[q*inputs+j/kernel])))
			}
		}
		return sum
	}}
}

func (p table) times(q table) table {
	return table{p.rows, q.cols, func(i, j int) *big.Rat {
		sum := new(big.Rat)
		for k := range p.cols {
			sum.Add(sum, new(big.Rat).Mul(p.at(i, k), q.at(k, j)))
		}
		return sum
	}}
}

func (p table) hadamard(q table) table {
	return table{p.rows, p.cols, func(i, j int) *big.Rat { return new(big.Rat).Mul(p.at(i, j), q.at(i, j)) }}
}

// source draws numbers of one scale.
type source struct {
	*rand.Rand
	scale float64
}

func (r source) draw(n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = r.NormFloat64() * r.scale
	}
	return x
}

func (r source) product(rows, rank, cols int) (Matrix, table) {
	x, y := r.draw(rows*rank), r.draw(rank*cols)
	return Product(rows, rank, cols, x, y), stored(rows, rank, x).times(stored(rank, cols, y))
}

func (r source) tucker(rows, rank, inputs, kernel int) (Matrix, table) {
	x, t, b := r.draw(rows*rank), r.draw(rank*rank*kernel), r.draw(rank*inputs)
	return Tucker(rows, rank, inputs, kernel, x, t, b), tuckerOf(rows, rank, inputs, kernel, x, t, b)
}

// TestSmallElements: the bounds hold where products leave the range of float64.
func TestSmallElements(t *testing.T) {
	for _, scale := range []float64{0x1p-540, 0x1p-600, 0x1p-300, 0x1p200} {
		r := source{rand.New(rand.NewPCG(3, 4)), scale}
		p, pw := r.product(2, 3, 3)
		q, qw := r.tucker(2, 2, 3, 1)
		d, want := Hadamard(p, q, 0x1p30), pw.hadamard(qw)
		for i := range 2 {
			dst, buf := make([]float64, 3), []float64(nil)
			most, bound := d.AddRow(dst, nil, i, &buf)
			for j, got := range dst {
				exact := new(big.Rat).Mul(want.at(i, j), rat(0x1p30))
				if math.IsInf(bound, 1) {
					continue // says that the row is not known
				}
				apart := new(big.Rat).Sub(rat(got), exact)
				if apart.Abs(apart).Cmp(rat(bound)) > 0 || most == 0 {
					t.Errorf("at %g: element %d, %d is %g, want %v within %g", scale, i, j, got, new(big.Float).SetRat(exact), bound)
				}
			}
		}
	}
}

// TestSmallScalings: the bound holds where the share times the scale underflows.
func TestSmallScalings(t *testing.T) {
	v, w, buf := []float64{0x1.8p-1070}, []float64{0x1p1000, -0x1.4p1000}, []float64(nil)
	for name, d := range map[string]*Delta{"rows": ScaledRows(v, 2, 0x1.6p-4), "inputs": ScaledInputs(v, 1, 2, 0x1.6p-4)} {
		dst := make([]float64, 2)
		_, bound := d.AddRow(dst, w, 0, &buf)
		for j, got := range dst {
			exact := new(big.Rat).Mul(rat(v[0]), rat(w[j]))
			exact.Mul(exact, rat(0x1.6p-4))
			apart := new(big.Rat).Sub(rat(got), exact)
			if apart.Abs(apart).Cmp(rat(bound)) > 0 {
				t.Errorf("%s: element %d is %g, want %s within %g", name, j, got, exact.FloatString(60), bound)
			}
		}
	}
}

// TestNonFiniteFactors: NaN and infinity propagate as in IEEE arithmetic, and no bound is claimed.
func TestNonFiniteFactors(t *testing.T) {
	inf := math.Inf(1)
	p := Product(1, 2, 3, []float64{1, 0}, []float64{inf, 1, 2, 3, inf, 4})
	one := Product(1, 1, 3, []float64{1}, []float64{1, 0, -1})
	d := Hadamard(p, one, 1)
	dst, buf := make([]float64, 3), []float64(nil)
	if _, err := d.AddRow(dst, nil, 0, &buf); !(err-err != 0) {
		t.Errorf("a row with infinite factors has the bound %g, want none", err)
	}
	for j, want := range []float64{inf, math.NaN(), 0} {
		sum := new(big.Float).SetPrec(precision)
		got := d.AddExact(sum, 0, 0, j)
		if got != want && (got == got || want == want) {
			t.Errorf("element %d is %v, want %v", j, got, want)
		}
	}
	if f, _ := exactly(d, 0, 2).Float64(); f != -2 {
		t.Errorf("element 2 is %v, want −2", f)
	}
}

func exactly(d *Delta, i, j int) *big.Float {
	sum := new(big.Float).SetPrec(precision)
	d.AddExact(sum, 0, i, j)
	return sum
}
