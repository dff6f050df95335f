package rank

import "math"

// Rule chooses the rank of a truncation from singular values.
type Rule interface {
	// Choose returns the rank for the singular values sigma, descending, of an m×n matrix of the
	// given energy ‖Δ‖_F². The values are estimates of the largest ones; more asks for a larger
	// basis, because they do not suffice to choose. The rank is at most len(sigma).
	Choose(sigma []float64, energy float64, m, n int) (rank int, more bool)
	// Hint is the rank to be expected, from which the size of blocks follows; 0 where nothing is
	// known.
	Hint() int
}

// FixedRank keeps K singular values, or as many as the matrix has.
type FixedRank struct{ K int }

// Choose returns K.
func (f FixedRank) Choose(sigma []float64, _ float64, m, n int) (int, bool) {
	k := min(f.K, m, n)
	return min(k, len(sigma)), len(sigma) < k
}

// Hint returns K.
func (f FixedRank) Hint() int { return f.K }

// EnergyShare keeps the fewest singular values whose energy is at least Share of ‖Δ‖_F², and at
// most Max where Max is not 0.
type EnergyShare struct {
	Share float64
	Max   int
}

// Choose adds up energies.
func (e EnergyShare) Choose(sigma []float64, energy float64, m, n int) (int, bool) {
	limit := min(m, n)
	if e.Max > 0 {
		limit = min(limit, e.Max)
	}
	var sum float64
	for i, s := range sigma {
		if i == limit {
			return limit, false
		}
		if sum += s * s; sum >= e.Share*energy {
			return i + 1, false
		}
	}
	return min(len(sigma), limit), len(sigma) < limit
}

// Hint is not known.
func (e EnergyShare) Hint() int { return e.Max }

// MaxError keeps the fewest singular values for which ‖Δ − Δ_k‖_F ≤ relative·‖Δ‖_F, and at most
// most where that is not 0. An extraction holds the factors as they are stored to it.
func MaxError(relative float64, most int) Rule { return maxError{relative: relative, most: most} }

type maxError struct {
	relative float64
	most     int

	allowed float64 // the error that was asked for, where relative is less of it; 0 is relative
	least   int     // values to keep in any case, if there are as many
}

// Choose subtracts energies.
func (e maxError) Choose(sigma []float64, energy float64, m, n int) (int, bool) {
	limit := min(m, n)
	if e.most > 0 {
		limit = min(limit, e.most)
	}
	rest := energy
	for i, s := range sigma {
		if i == limit {
			return limit, false
		}
		if rest -= s * s; rest <= e.relative*e.relative*energy && i+1 >= e.least {
			return i + 1, false
		}
	}
	return min(len(sigma), limit), len(sigma) < limit
}

// Hint is not known.
func (e maxError) Hint() int { return e.most }

// NoiseFloor keeps the singular values above the edge of white noise with the standard deviation
// Sigma per element: Sigma·(√m + √n) (Marchenko and Pastur), and above what products in float32
// resolve. At least one is kept where anything is.
type NoiseFloor struct {
	Sigma float64
	Max   int
}

// resolution is the share of σ₁ below which singular values have no digits in float32: that of the
// numerical rank.
func resolution(m, n int) float64 { return float64(max(m, n)) * 0x1p-24 }

// Edge is the largest singular value that noise alone has.
func (f NoiseFloor) Edge(m, n int) float64 {
	return f.Sigma * (math.Sqrt(float64(m)) + math.Sqrt(float64(n)))
}

// Choose counts the values above the edge.
func (f NoiseFloor) Choose(sigma []float64, _ float64, m, n int) (int, bool) {
	limit := min(m, n)
	if f.Max > 0 {
		limit = min(limit, f.Max)
	}
	edge := f.Edge(m, n)
	if len(sigma) > 0 {
		edge = max(edge, resolution(m, n)*sigma[0])
	}
	for i, s := range sigma {
		if i == limit {
			return limit, false
		}
		if s <= edge {
			return max(i, 1), false
		}
	}
	return min(len(sigma), limit), len(sigma) < limit
}

// Hint is not known.
func (f NoiseFloor) Hint() int { return 0 }
