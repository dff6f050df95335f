package rank

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/internal/naming"
)

// ChangeSpectrum describes the singular values of Δ = B − A of a tensor, as a matrix: a convolution
// as out × the rest. If the tensor stacks experts, it is that of the expert with the largest ‖Δ‖.
// The package documentation has the definitions.
type ChangeSpectrum struct {
	// SingularValues are the first ones, descending: those with 90 % of the energy, or
	// ChangeRank of them.
	SingularValues []float64 `json:"singular_values"`
	// Rank90 is the fewest singular values with 90 % of the energy, and 0 if these are more than
	// ChangeRank.
	Rank90     int     `json:"rank_90"`
	StableRank float64 `json:"stable_rank"`
	// EffectiveRank is an estimate of the entropy rank, as a rule within 2 %. The singular values
	// above and ‖Δ‖ prove that the entropy rank is from EffectiveLeast to EffectiveMost.
	EffectiveRank  float64 `json:"effective_rank"`
	EffectiveLeast float64 `json:"effective_rank_least"`
	EffectiveMost  float64 `json:"effective_rank_most"`
	// Experts is the number of experts that the tensor stacks, 0 for one matrix.
	Experts int `json:"experts,omitempty"`
}

// ChangeRank is the most singular values of a ChangeSpectrum.
const ChangeRank = 64

const (
	changeShare     = 0.9  // of the energy, in the singular values
	changeTolerance = 1e-2 // of the energy that they leave
)

// changeView is the way in which a tensor is one matrix or several.
type changeView struct{ slabs, rows, cols int }

// viewChange says how to see a changed tensor as matrices. ok is false if it is none.
func viewChange(name string, shape []uint64) (v changeView, ok bool) {
	if len(shape) < 2 || slices.Contains(shape, 0) {
		return v, false
	}
	v = changeView{slabs: 1, rows: int(shape[0]), cols: 1}
	for _, n := range shape[1:] {
		v.cols *= int(n)
	}
	if len(shape) == 3 && naming.IsExperts(naming.Module(name)) {
		v = changeView{int(shape[0]), int(shape[1]), int(shape[2])}
	}
	return v, true
}

// ChangeBytes estimates the memory that CompareCheckpoints takes for a spectrum of a checkpoint
// with the tensors of a, and names the largest tensor.
func ChangeBytes(a *checkpoint.Checkpoint) (peak int64, tensor string) {
	c := opened(a)
	for _, name := range c.Names() {
		x := locate(c, name)
		v, ok := viewChange(name, x.ref.Tensor.Shape)
		if !ok || !x.dtype().IsFloat() {
			continue
		}
		const basis = 1024 // vectors of the basis and their products, as a rule
		m, n := int64(v.rows), int64(v.cols)
		if need := 4*m*n + 8*min(basis, m, n)*(m+n); need > peak {
			peak, tensor = need, name
		}
	}
	return peak + 32<<20, tensor
}

// spectrum computes the spectrum of a changed tensor, if it is a matrix of floats.
func (t *CheckpointTensor) spectrum(ctx context.Context, p *pair, workers int) error {
	v, ok := viewChange(p.name, t.ShapeA)
	if !ok || !p.base.dtype().IsFloat() || !p.tuned.dtype().IsFloat() {
		return nil
	}
	switch {
	case t.NonFinite > 0:
		t.NoSpectrum = "it has NaN or infinite values"
		return nil
	case t.Norm > maxNorm || t.Max < leastNormal:
		t.NoSpectrum = fmt.Sprintf("its change is beyond the range of float32: the largest is %.3g", t.Max)
		return nil
	}
	u, err := largestSlab(ctx, p, v, workers)
	if err != nil {
		return err
	}
	if t.ChangeSpectrum, err = spectrumOfChange(ctx, u, workers); err == nil && v.slabs > 1 {
		t.ChangeSpectrum.Experts = v.slabs
	}
	return err
}

// leastNormal is the least normal number of float32.
const leastNormal = 0x1p-126

// largestSlab forms Δ of a tensor, or of the expert in which it is largest.
func largestSlab(ctx context.Context, p *pair, v changeView, workers int) (*update, error) {
	at, n := 0, int64(v.rows)*int64(v.cols)
	if v.slabs > 1 {
		most := 0.0
		for i := range v.slabs {
			energy, err := p.energy(ctx, int64(i)*n, n)
			if err != nil {
				return nil, err
			}
			if energy > most {
				at, most = i, energy
			}
		}
	}
	return p.difference(ctx, int64(at)*n, v.rows, v.cols, &room{workers: workers})
}

// spectrumOfChange describes Δ. It overwrites it.
func spectrumOfChange(ctx context.Context, u *update, workers int) (*ChangeSpectrum, error) {
	exponent, err := u.normalise(ctx)
	if err != nil {
		return nil, err
	}
	energy := math.Ldexp(u.energy, 2*exponent)
	t := newTruncation(u.dense, energy, Options{Tolerance: changeTolerance, Workers: workers})
	t.search.narrow = true // so that the space keeps its random start
	d, err := t.to(ctx, EnergyShare{Share: changeShare, Max: ChangeRank})
	if err != nil {
		return nil, err
	}
	s := &ChangeSpectrum{SingularValues: scaledBy(d.S, -exponent)}
	if sumSquares(d.S) >= changeShare*energy*(1-1e-6) {
		s.Rank90 = d.K
	}
	if d.K > 0 {
		s.StableRank = energy / (d.S[0] * d.S[0])
		err = s.effective(ctx, t.search, d)
	}
	return s, err
}

// effective computes the entropy rank and its bounds.
func (s *ChangeSpectrum) effective(ctx context.Context, k *search, d *Decomposition) error {
	weights, err := k.space.Weights(ctx)
	if err != nil {
		return err
	}
	// Nothing but their energy is known of the others: they are as large as the last kept one, or
	// all equal.
	entropy, rest := entropyOf(d.S, d.Energy)
	least, most := entropy, entropy
	if others := k.n - d.K; rest > 0 && others > 0 {
		last := d.S[d.K-1]
		least -= rest * math.Log(last*last/d.Energy)
		most -= rest * math.Log(rest/float64(others))
	}
	least = min(least, most)
	// The first half of the estimates are nearly singular values. The quadrature gives the mean of
	// log p over the energy of the rest.
	first := max(d.K, min(len(d.Estimates)/2, ChangeRank))
	estimate, rest := entropyOf(d.Estimates[:first], d.Energy)
	var mass, logs float64
	for i, sigma := range d.Estimates[first:] {
		w := weights[first+i]
		if k.space.Closed {
			w = 1 // these are all singular values
		}
		if p := sigma * sigma / d.Energy; p > 0 {
			mass, logs = mass+w*p, logs+w*p*math.Log(p)
		}
	}
	if mass > 0 {
		estimate -= rest * logs / mass
	}
	s.EffectiveLeast, s.EffectiveMost = math.Exp(least), math.Exp(most)
	s.EffectiveRank = math.Exp(max(least, min(estimate, most)))
	return nil
}

// entropyOf returns −Σ p·log p of the shares p of some singular values in an energy, and the share
// of the rest.
func entropyOf(sigma []float64, energy float64) (entropy, rest float64) {
	rest = 1
	for _, v := range sigma {
		if p := v * v / energy; p > 0 {
			entropy, rest = entropy-p*math.Log(p), rest-p
		}
	}
	return entropy, max(0, rest)
}
