package rank

import (
	"context"
	"errors"
	"math"
)

// Options tune a decomposition. The zero value is ready to use.
type Options struct {
	Tolerance float64 // relative excess over the least possible error, above 0; 0 means 1e-4
	Seed      uint64  // of the first block
	Workers   int     // goroutines; 0 means one per processor
}

const defaultTolerance = 1e-4

// Decomposition is a truncated singular value decomposition Δ ≈ U·diag(S)·Vᵀ.
type Decomposition struct {
	K int       // number of singular triplets
	U []float64 // m×K, row-major, orthonormal columns
	V []float64 // n×K
	S []float64 // K singular values, descending

	// Estimates are all singular values from the last basis, descending, beginning with S. Beyond K
	// they are lower bounds: some rank-k matrix has the energy Σ_{i≤k} Estimates[i]².
	Estimates []float64
	Energy    float64 // ‖Δ‖_F²
	Error     float64 // ‖Δ − U·diag(S)·Vᵀ‖_F, from the energies: √(‖Δ‖² − ΣS²)
	Products  int     // products with thin matrices, by Δ and by Δᵀ
	Flops     int64   // of these products
	Complete  bool    // the basis spanned all of Δ before the rank was chosen
	// the last products were in float64, since the error is below the resolution of float32
	Wide bool
}

// TruncatedSVD decomposes Δ to the rank that rule chooses. energy is ‖Δ‖_F². It returns K = 0 for a
// zero matrix. The result is the same for any number of workers. A rule or an option outside of its
// range is an error.
func TruncatedSVD(ctx context.Context, op Operator, energy float64, rule Rule,
	o Options) (*Decomposition, error) {
	if err := errors.Join(checkRule(rule), o.check()); err != nil {
		return nil, err
	}
	return newTruncation(op, energy, o).to(ctx, rule)
}

// truncation is a decomposition that another rank can continue from the same basis.
type truncation struct{ search *search }

func newTruncation(op Operator, energy float64, o Options) *truncation {
	return &truncation{newSearch(op, energy, o)}
}

// to decomposes to the rank that rule chooses.
func (t *truncation) to(ctx context.Context, rule Rule) (*Decomposition, error) {
	k := t.search
	before := k.out
	k.out = &Decomposition{Energy: k.energy, Complete: true}
	if before != nil {
		k.out.Products, k.out.Flops = before.Products, before.Flops
	}
	if k.energy == 0 || k.n == 0 {
		return k.out, nil
	}
	err := k.run(ctx, rule)
	if k.flipped {
		k.out.U, k.out.V = k.out.V, k.out.U
	}
	return k.out, err
}

// Factors returns B = U·√S (m×K) and A = √S·Vᵀ (K×n), so that B·A is the truncation. Splitting √S
// keeps both factors in the range where 16-bit types are precise.
func (d *Decomposition) Factors() (b, a []float32) {
	wideB, wideA := d.factors()
	return narrowed(wideB), narrowed(wideA)
}

// factors returns the Factors in float64.
func (d *Decomposition) factors() (b, a []float64) {
	k := d.K
	if k == 0 {
		return nil, nil
	}
	m, n := len(d.U)/k, len(d.V)/k
	b, a = make([]float64, m*k), make([]float64, k*n)
	for t := range k {
		root := math.Sqrt(d.S[t])
		for i := range m {
			b[i*k+t] = d.U[i*k+t] * root
		}
		for j := range n {
			a[t*n+j] = d.V[j*k+t] * root
		}
	}
	return b, a
}
