package rank

import "math"

// Rule chooses the rank of a truncation from singular values.
type Rule interface {
	// Choose returns the rank for an m×n matrix with ‖Δ‖_F² = energy. sigma holds estimates of its
	// largest singular values, descending. more asks for a larger basis if sigma is too short to
	// choose. The rank is from 0 to len(sigma).
	Choose(sigma []float64, energy float64, m, n int) (rank int, more bool)
	// Hint returns the expected rank, which sets the block size; 0 if unknown.
	Hint() int
}

// FixedRank keeps K singular values, or as many as the matrix has. K is at least 1.
type FixedRank struct{ K int }

// Choose returns K.
func (f FixedRank) Choose(sigma []float64, _ float64, m, n int) (int, bool) {
	k := min(f.K, m, n)
	return min(k, len(sigma)), len(sigma) < k
}

// Hint returns K.
func (f FixedRank) Hint() int { return f.K }

// EnergyShare keeps the fewest singular values with at least Share of ‖Δ‖_F², and no more than Max,
// unless it is 0.
type EnergyShare struct {
	Share float64 // more than 0 and at most 1, which is all of the energy
	Max   int     // the largest rank; 0 means no limit
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

// Hint returns Max.
func (e EnergyShare) Hint() int { return e.Max }

// MaxError keeps the fewest singular values with ‖Δ − Δ_k‖_F ≤ relative·‖Δ‖_F, and no more than
// maxRank, unless it is 0. relative lies above 0 and below 1. An extraction applies the limit to
// the stored factors.
func MaxError(relative float64, maxRank int) Rule {
	return maxError{relative: relative, most: maxRank}
}

type maxError struct {
	relative float64
	most     int

	allowed float64 // the requested error, if relative was tightened; 0 means relative
	least   int     // fewest values to keep, if the matrix has them
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

// Hint returns maxRank.
func (e maxError) Hint() int { return e.most }

// NoiseFloor keeps the singular values above two limits: the resolution of float32 products, and
// Sigma·(√m + √n), the edge of white noise with standard deviation Sigma per element (Marchenko and
// Pastur). It keeps at least one of a nonzero matrix.
type NoiseFloor struct {
	Sigma float64 // at least 0; 0 leaves only the resolution of float32
	Max   int     // the largest rank; 0 means no limit
}

// resolution is the share of σ₁ below which singular values have no digits in float32, as in the
// numerical rank.
func resolution(m, n int) float64 { return float64(max(m, n)) * 0x1p-24 }

// Edge returns the largest singular value of noise alone.
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

// Hint returns 0.
func (f NoiseFloor) Hint() int { return 0 }
