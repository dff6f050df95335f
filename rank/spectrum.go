package rank

import (
	"context"
	"fmt"
	"math"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/parallel"
)

// Spectrum is the exact spectrum of one layer's update s·B·A. Its definitions are in the package documentation.
type Spectrum struct {
	Module         string
	SingularValues []float64 // min(m, n, r) of them, descending
	Energy         []float64 // cumulative shares, as many; all 0 for a zero update
	Frobenius      float64   // ‖s·B·A‖_F
	StableRank     float64
	EntropyRank    float64
	NumericalRank  int
}

// RankFor is the fewest singular values with at least the given share of the energy; 0 for a zero update.
func (s *Spectrum) RankFor(share float64) int {
	for i, e := range s.Energy {
		if e >= share*(1-1e-15) {
			return i + 1
		}
	}
	return 0
}

// Spectra computes the spectra of all layers whose update is s·B·A: linear layers, embeddings, and convolutions, whose factors
// are seen as matrices. The others are left out. ΔW is never formed. Layers are computed on as many goroutines as workers says, 0
// for one per processor, each with the factors of one layer in float64.
func Spectra(ctx context.Context, src format.Source, workers int) ([]Spectrum, error) {
	m := src.Manifest()
	var layers []*format.Layer
	for i := range m.Adapters {
		for j := range m.Adapters[i].Layers {
			if l := &m.Adapters[i].Layers[j]; hasSpectrum(l) {
				layers = append(layers, l)
			}
		}
	}
	spectra := make([]Spectrum, len(layers))
	err := parallel.For(ctx, workers, len(layers), func(_, i int) error {
		s, err := spectrumOf(src, layers[i])
		if err != nil {
			return fmt.Errorf("%s: %w", layers[i].Module, err)
		}
		spectra[i] = *s
		return nil
	})
	return spectra, err
}

// hasSpectrum reports whether a layer's update is s·B·A. A DoRA layer has more to it, but its directions are these.
func hasSpectrum(l *format.Layer) bool {
	return l.Kind == format.Linear || l.Kind == format.Embedding || l.Kind == format.Conv
}

func spectrumOf(src format.Source, l *format.Layer) (*Spectrum, error) {
	a, err := readFactor(src, l.Roles[format.RoleA])
	if err != nil {
		return nil, err
	}
	b, err := readFactor(src, l.Roles[format.RoleB])
	if err != nil {
		return nil, err
	}
	r := l.Rank
	m, n := len(b)/r, len(a)/r
	for _, x := range [][]float64{a, b} {
		for _, v := range x {
			if v-v != 0 {
				return nil, fmt.Errorf("a factor holds NaN or infinity: it has no spectrum")
			}
		}
	}
	sigma, err := productSingularValues(transpose64(a, r, n), b, m, n, r)
	if err != nil {
		return nil, err
	}
	scale := math.Abs(l.Scale())
	for i := range sigma {
		sigma[i] *= scale
	}
	d := src.Manifest().Tensors[l.Roles[format.RoleB]].DType
	return describe(l.Module, sigma, max(m, n), unitOf(d)), nil
}

// describe computes what follows from singular values.
func describe(module string, sigma []float64, longSide int, unit float64) *Spectrum {
	s := &Spectrum{Module: module, SingularValues: sigma, Energy: make([]float64, len(sigma))}
	total := sumSquares(sigma)
	s.Frobenius = math.Sqrt(total)
	if total == 0 {
		return s
	}
	var sum, entropy float64
	for i, v := range sigma {
		p := v * v / total
		sum += p
		s.Energy[i] = min(sum, 1)
		if p > 0 {
			entropy -= p * math.Log(p)
		}
		if v > float64(longSide)*unit*sigma[0] {
			s.NumericalRank++
		}
	}
	s.StableRank, s.EntropyRank = total/(sigma[0]*sigma[0]), math.Exp(entropy)
	return s
}

// unitOf is the unit roundoff of a dtype.
func unitOf(d dtype.Type) float64 {
	switch d {
	case dtype.BF16:
		return 0x1p-8
	case dtype.F16:
		return 0x1p-11
	case dtype.F32:
		return 0x1p-24
	}
	return 0x1p-53
}

func readFactor(src format.Source, i int) ([]float64, error) {
	t := &src.Manifest().Tensors[i]
	buf := make([]byte, t.NBytes())
	if err := src.ReadBlobAt(buf, i, 0); err != nil {
		return nil, err
	}
	x := make([]float64, t.Elements())
	if !t.DType.IsFloat() {
		return nil, fmt.Errorf("%q is stored as %v", t.Name, t.DType)
	}
	dtype.Widen64(x, t.DType, buf)
	return x, nil
}

// productSingularValues returns the singular values of B·Aᵀ for B (m×r) and A (n×r): those of a core that is no larger than r×r.
//
// Where both Gram matrices are well conditioned, their eigenvectors give the core: with BᵀB = Q_b·Λ_b·Q_bᵀ and AᵀA likewise it is
// Λ_b^½·Q_bᵀ·Q_a·Λ_a^½. The products of float32 values are exact in float64, so an eigenvalue has an absolute error of some
// units of λ₁·2⁻⁵³, and its root a relative one of 2⁻⁵³·λ₁/λ: below 1e-6 where λ/λ₁ > gramLimit. Elsewhere the triangles of
// Householder's decomposition take the place of the roots, R_b·R_aᵀ, at several times the cost and without squaring the condition.
func productSingularValues(a, b []float64, m, n, r int) ([]float64, error) {
	rb, okB, err := root(b, m, r)
	if err != nil {
		return nil, err
	}
	ra, okA, err := root(a, n, r)
	if err != nil {
		return nil, err
	}
	rowsB, rowsA := r, r
	if !okB || !okA {
		rb, rowsB = householder(b, m, r)
		ra, rowsA = householder(a, n, r)
	}
	core := make([]float64, rowsB*rowsA)
	for i := range rowsB {
		for j := range rowsA {
			core[i*rowsA+j] = dot(rb[i*r:(i+1)*r], ra[j*r:(j+1)*r])
		}
	}
	return singularValues(core, rowsB, rowsA)
}

// gramLimit is the smallest ratio of eigenvalues that a Gram matrix may have.
const gramLimit = 1e-9

// root returns Λ^½·Qᵀ (r×r) of the Gram matrix of x (rows×r), or false where that would not be accurate.
func root(x []float64, rows, r int) ([]float64, bool, error) {
	if rows < r {
		return nil, false, nil
	}
	g := make([]float64, r*r)
	for i := range rows {
		row := x[i*r : (i+1)*r]
		for s, v := range row {
			dst := g[s*r : (s+1)*r]
			for t := s; t < r; t++ {
				dst[t] += v * row[t]
			}
		}
	}
	for s := range r {
		for t := range s {
			g[s*r+t] = g[t*r+s]
		}
	}
	values, vectors, err := symmetricEigen(g, r)
	if err != nil {
		return nil, false, err
	}
	if !(values[r-1] > gramLimit*values[0]) {
		return nil, false, nil
	}
	out := make([]float64, r*r)
	for s := range r {
		w := math.Sqrt(values[s])
		for t := range r {
			out[s*r+t] = w * vectors[t*r+s]
		}
	}
	return out, true, nil
}

// householder returns the triangle of x (rows×r), or x itself where it has fewer rows than columns.
func householder(x []float64, rows, r int) ([]float64, int) {
	if rows < r {
		return x, rows
	}
	return triangle(x, rows, r), r
}

func dot(x, y []float64) (sum float64) {
	for i, v := range x {
		sum += v * y[i]
	}
	return sum
}

func transpose64(x []float64, rows, cols int) []float64 {
	y := make([]float64, len(x))
	for i := range rows {
		for j := range cols {
			y[j*rows+i] = x[i*cols+j]
		}
	}
	return y
}
