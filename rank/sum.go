package rank

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/thin"
)

// sum is ΔW = Σ w·s·B·A of a group, block by block.
type sum struct {
	layout *factors
	rank   int            // of the concatenation
	blocks []*thin.Matrix // balanced
}

// sum reads the factors of a group.
func (c *combining) sum(ctx context.Context, g *group) (*sum, error) {
	s := &sum{layout: g.members[0].factors}
	terms, err := c.terms(ctx, g)
	if err != nil {
		return nil, err
	}
	for _, m := range g.members {
		s.rank += m.rank
	}
	for _, block := range terms {
		for _, t := range block {
			t.Balance()
		}
		x := block[0].Matrix
		if len(block) > 1 {
			x = thin.Sum(block...)
			x.Balance()
		} else if block[0].Weight != 1 {
			x.Scale(block[0].Weight)
		}
		s.blocks = append(s.blocks, x)
	}
	return s, nil
}

// terms reads the factors of a group, with w·s as weights: the terms of each block.
func (c *combining) terms(ctx context.Context, g *group) ([][]thin.Term, error) {
	terms := make([][]thin.Term, g.members[0].n)
	for _, m := range g.members {
		all, nonFinite, err := m.read(ctx, c.sources[m.source])
		if err != nil {
			return nil, err
		}
		if nonFinite > 0 {
			return nil, fault.New(fault.Check, "%s of the factors %s NaN or infinite", fault.Count(nonFinite, "value"), fault.Choose(nonFinite, "is", "are")).
				WithHint("training diverged; use an earlier checkpoint of the adapter")
		}
		for i, x := range all {
			terms[i] = append(terms[i], thin.Term{Weight: m.weight, Matrix: x})
		}
	}
	return terms, nil
}

// joined reads the concatenation of each block, for a layer of the given scale.
func (c *combining) joined(ctx context.Context, g *group, scale float64) (all []*thin.Matrix, err error) {
	terms, err := c.terms(ctx, g)
	for _, block := range terms {
		for i := range block {
			block[i].Weight /= scale
		}
		all = append(all, thin.Sum(block...))
	}
	return all, err
}

// isExactBy reports whether the quotients of joined, and their products with elements of at most 24
// bits, are exact: whether they are powers of two, or 1 in particular.
func (g *group) isExactBy(scale float64) bool {
	for _, m := range g.members {
		q := m.weight / scale
		if f, _ := math.Frexp(q); q*scale != m.weight || q != 0 && math.Abs(f) != 0.5 {
			return false
		}
	}
	return true
}

// residual returns Σ ‖ΔW − scale·C‖² over all blocks, for the stored factors C of a layer. left has
// ‖ΔW − scale·C‖² of each block for the factors before they were stored, which are exact.
func (s *sum) residual(ctx context.Context, left []float64, exact, stored []*thin.Matrix, scale float64) (squares float64, err error) {
	for i, x := range s.blocks {
		norm, err := thin.Lost(ctx, x, scale, math.Sqrt(left[i]), exact[i], stored[i])
		if err != nil {
			return 0, err
		}
		squares += norm * norm
	}
	return squares, nil
}

// clones returns copies of matrices.
func clones(all []*thin.Matrix) []*thin.Matrix {
	copies := make([]*thin.Matrix, len(all))
	for i, x := range all {
		copies[i] = &thin.Matrix{M: x.M, N: x.N, R: x.R, B: slices.Clone(x.B), A: slices.Clone(x.A), Exponent: x.Exponent}
	}
	return copies
}

// truncatedSum is the best approximation of a sum of the rank that a rule chooses.
type truncatedSum struct {
	*sum
	rule  Rule // nil keeps all
	dtype dtype.Type

	rank    int       // of all blocks
	sigma   []float64 // singular values of the main block
	energy  float64   // ‖ΔW‖² over all blocks
	left    float64   // lost before rounding
	rounded float64   // lost as stored

	decompositions []*thin.Decomposition
}

// choose decomposes all blocks and chooses their rank: the largest of what the rule says for each.
func (t *truncatedSum) choose(ctx context.Context) error {
	var main float64
	for _, x := range t.blocks {
		d, err := x.Decompose(ctx)
		if err != nil {
			return err
		}
		t.decompositions = append(t.decompositions, d)
		energy := math.Ldexp(sumSquares(d.Sigma), 2*d.Exponent)
		if t.energy += energy; energy > main || t.sigma == nil {
			main, t.sigma = energy, scaledBy(d.Sigma, d.Exponent)
		}
		if energy-energy != 0 {
			return fault.New(fault.Unsupported, "‖ΔW‖ is about 2^%d, beyond float64", d.Exponent)
		}
	}
	if t.rank = t.sum.rank; t.rule != nil {
		t.rank = t.chosen(t.rule)
	}
	return nil
}

// chosen returns the rank that a rule chooses, at least 1.
func (t *truncatedSum) chosen(rule Rule) int {
	k := 1
	for _, d := range t.decompositions {
		n, _ := rule.Choose(d.Sigma, sumSquares(d.Sigma), t.layout.rows, t.layout.cols)
		k = max(k, n)
	}
	return k
}

func scaledBy(x []float64, exponent int) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = math.Ldexp(v, exponent)
	}
	return y
}

// round makes factors for a layer of the given scale, and measures the error of what is stored. If
// rounding raises it above the limit of MaxError, more values are kept.
func (t *truncatedSum) round(ctx context.Context, scale float64) (*stored, error) {
	for {
		exact, left, err := t.factors(ctx, scale)
		if err != nil {
			return nil, err
		}
		made := clones(exact)
		s, err := t.layout.store(made, t.dtype)
		if err != nil {
			return nil, err
		}
		if t.rounded, err = t.residual(ctx, left, exact, made, scale); err != nil {
			return nil, err
		}
		rule, err := t.tightened(t.rank, t.left, t.rounded)
		if rule == nil {
			return s, err
		}
		t.rule = rule
		t.rank = t.chosen(rule)
	}
}

// tightened is tightened for the rule of this layer.
func (t *truncatedSum) tightened(k int, left, rounded float64) (Rule, error) {
	rule, err := tightened(t.rule, k, left, rounded, t.energy, t.sum.rank)
	if err != nil {
		err = fault.New(fault.Check, "the error as stored is %v", err).
			WithHint("allow a larger error with rank.MaxError; F32 factors are the most precise")
	}
	return rule, err
}

// factors returns the factors of each block before rounding, with half of the scale and of the
// exponent in each, and the energy that each block loses.
func (t *truncatedSum) factors(ctx context.Context, scale float64) (made []*thin.Matrix, left []float64, err error) {
	t.left = 0
	for _, d := range t.decompositions {
		k := min(t.rank, len(d.Sigma))
		f, err := d.Factors(ctx, k)
		if err != nil {
			return nil, nil, err
		}
		left = append(left, math.Ldexp(sumSquares(d.Sigma[k:]), 2*d.Exponent))
		t.left += left[len(left)-1]
		root := 1 / math.Sqrt(math.Abs(scale))
		multiply(f.A, root, f.Exponent/2)
		multiply(f.B, math.Copysign(root, scale), f.Exponent-f.Exponent/2)
		f.Exponent = 0
		made = append(made, padded(f, t.rank))
	}
	return made, left, nil
}

func multiply(x []float64, factor float64, exponent int) {
	for i, v := range x {
		x[i] = math.Ldexp(factor*v, exponent)
	}
}

// padded gives a matrix more columns, of zeros: all experts of a layer have one rank.
func padded(x *thin.Matrix, rank int) *thin.Matrix {
	if x.R == rank {
		return x
	}
	y := &thin.Matrix{M: x.M, N: x.N, R: rank, B: make([]float64, x.M*rank), A: make([]float64, x.N*rank)}
	for i := range x.M {
		copy(y.B[i*rank:], x.B[i*x.R:(i+1)*x.R])
	}
	for j := range x.N {
		copy(y.A[j*rank:], x.A[j*x.R:(j+1)*x.R])
	}
	return y
}

// spend returns the ranks that the budget buys, by module; nil without a budget.
func (c *combining) spend(ctx context.Context) (map[string]int, error) {
	if c.options.Budget == 0 {
		return nil, nil
	}
	var offers []candidate
	for _, g := range c.groups {
		s, err := c.sum(ctx, g)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g.module, err)
		}
		energies := make([]float64, s.rank)
		for _, x := range s.blocks {
			sigma, err := x.SingularValues(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", g.module, err)
			}
			for i, v := range sigma {
				v = math.Ldexp(v, x.Exponent)
				energies[i] += v * v
			}
		}
		cost := int64(s.layout.n) * int64(s.layout.rows+s.layout.cols) * int64(c.dtypeOf(g).Size())
		for _, e := range energies {
			if e > 0 {
				offers = append(offers, candidate{g.module, e / float64(cost), cost})
			}
		}
	}
	ranks, cheapest := buy(offers, c.options.Budget)
	if len(ranks) == 0 && len(offers) > 0 {
		return nil, fault.New(fault.Mismatch, "the budget of %s buys no singular value of any layer; the cheapest costs %s",
			fault.Count(c.options.Budget, "byte"), fault.Count(cheapest, "byte")).
			WithHint("use a larger CombineOptions.Budget")
	}
	return ranks, nil
}
