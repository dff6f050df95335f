package rank

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/thin"
)

// CompareOptions says how Compare and CompareCheckpoints compare. The zero value is ready to use.
type CompareOptions struct {
	Directions int // of adapters: the most singular vectors whose spaces are compared; 0 means 8
	Workers    int // goroutines; 0 means one per processor
	// Spectra computes the ChangeSpectrum of every changed matrix of two checkpoints.
	Spectra bool
	// Progress is called from several goroutines with the number of bytes of the first checkpoint
	// that were just compared. Adapters have none. nil reports nothing.
	Progress func(bytes int64)
}

func (o *CompareOptions) progress(bytes int64) {
	if o.Progress != nil {
		o.Progress(bytes)
	}
}

// Comparison compares two adapters. Norms are over all layers with an update s·B·A; a layer that
// only one adapter has counts as a ΔW of zero in the other.
type Comparison struct {
	Layers []ComparedLayer `json:"layers"`
	OnlyA  []string        `json:"only_a"` // modules that only one adapter has
	OnlyB  []string        `json:"only_b"`
	// NotCompared lists modules whose update is no thin product, or of a different size or meaning
	// in the two adapters.
	NotCompared []NotCompared `json:"not_compared"`
	// Tensors compares tensors that are no factors: biases, magnitudes, and tensors beside the
	// layers.
	Tensors []ComparedTensor `json:"tensors"`

	NormA          float64 `json:"norm_a"`
	NormB          float64 `json:"norm_b"`
	NormDifference float64 `json:"norm_difference"` // ‖ΔA − ΔB‖_F
	Cosine         float64 `json:"cosine"`          // ⟨ΔA, ΔB⟩ ÷ ‖ΔA‖‖ΔB‖; 0 if one is zero
	// Interference is ‖ΔA + ΔB‖² ÷ (‖ΔA‖² + ‖ΔB‖²): 1 for updates that do not touch each other,
	// above 1 if they add up, and below 1 if they fight; 1 if both are zero.
	Interference float64 `json:"interference"`
}

// NotCompared is a module without a comparison.
type NotCompared struct {
	Module string `json:"module"`
	Why    string `json:"why"`
}

// ComparedLayer compares the updates ΔA and ΔB of a module. If it stacks experts, all of them count
// together, and the spaces are those of the expert with the largest ‖ΔA‖² + ‖ΔB‖².
type ComparedLayer struct {
	Module string  `json:"module"`
	Kind   string  `json:"kind"`
	M      int     `json:"m"`
	N      int     `json:"n"`
	RankA  int     `json:"rank_a"`
	RankB  int     `json:"rank_b"`
	ScaleA float64 `json:"scale_a"`
	ScaleB float64 `json:"scale_b"`

	NormA          float64 `json:"norm_a"`
	NormB          float64 `json:"norm_b"`
	NormDifference float64 `json:"norm_difference"`
	Cosine         float64 `json:"cosine"`
	Interference   float64 `json:"interference"`

	// Overlap is φ of the spaces of the first k input directions (right singular vectors), with k
	// the smaller of the numerical ranks, at most CompareOptions.Directions; 0 if one update is
	// zero. Random is what two random spaces have on average. OverlapOut and RandomOut are the same
	// for the output directions.
	Directions int     `json:"directions"` // k
	Overlap    float64 `json:"overlap"`
	Random     float64 `json:"overlap_random"`
	OverlapOut float64 `json:"overlap_out"`
	RandomOut  float64 `json:"overlap_out_random"`
	// Similarity[i−1][j−1] is φ(i, j) of the input directions (arXiv:2106.09685, section 7.2).
	Similarity [][]float64 `json:"similarity"`

	squares squares
}

// squares are ‖ΔA‖², ‖ΔB‖², ⟨ΔA, ΔB⟩ and ‖ΔA − ΔB‖².
type squares struct{ a, b, product, difference float64 }

func (s *squares) add(t squares) {
	s.a, s.b, s.product, s.difference = s.a+t.a, s.b+t.b, s.product+t.product, s.difference+t.difference
}

func (s *squares) cosine() float64 {
	if s.a == 0 || s.b == 0 {
		return 0
	}
	return max(-1, min(s.product/math.Sqrt(s.a)/math.Sqrt(s.b), 1))
}

func (s *squares) interference() float64 {
	if s.a+s.b == 0 {
		return 1
	}
	return max(0, 1+2*s.product/(s.a+s.b))
}

// Compare compares the updates of two adapters of one model, layer by layer, through their factors.
// Layers belong together if their modules have the same name; convert.Alike gives adapters of
// several dialects the same names. The similarity of two spaces is φ(i,
// j) = ‖U_iᵀ·V_j‖_F² ÷ min(i, j), with U_i and V_j the first i and j singular vectors of ΔA and ΔB:
// 1 if one contains the other, 0 if they are orthogonal, and max(i, j)/n on average for random
// spaces of n dimensions. It does not depend on how a ΔW is factorized. Values that are NaN or
// infinite are an error.
func Compare(ctx context.Context, a, b format.Source, o CompareOptions) (*Comparison, error) {
	if o.Directions < 0 {
		return nil, fmt.Errorf("CompareOptions.Directions is %d, want at least 1, or 0 for %d", o.Directions, defaultDirections)
	}
	if o.Directions == 0 {
		o.Directions = defaultDirections
	}
	c := &comparing{sources: [2]format.Source{a, b}, options: o, result: &Comparison{
		Layers: []ComparedLayer{}, OnlyA: []string{}, OnlyB: []string{}, NotCompared: []NotCompared{}, Tensors: []ComparedTensor{},
	}}
	if err := c.match(); err != nil {
		return nil, err
	}
	layers := make([]*ComparedLayer, len(c.matches))
	err := parallel.For(ctx, o.Workers, len(c.matches), func(_, i int) error {
		l, err := c.compare(ctx, &c.matches[i])
		if err != nil {
			return fmt.Errorf("%s: %w", c.matches[i].module, err)
		}
		layers[i] = l
		return nil
	})
	if err == nil {
		err = c.compareOthers(ctx, &a.Manifest().Adapters[0], &b.Manifest().Adapters[0])
	}
	if err != nil {
		return nil, err
	}
	c.finish(layers)
	return c.result, nil
}

// Same reports whether the two adapters do the same: every layer has the same ΔW, up to the
// rounding of float64, and every other tensor the same values.
func (c *Comparison) Same() bool {
	if c.IsPartial() {
		return false
	}
	for i := range c.Layers {
		if l := &c.Layers[i]; l.NormDifference > sameWithin*max(l.NormA, l.NormB) {
			return false
		}
	}
	return !slices.ContainsFunc(c.Tensors, func(t ComparedTensor) bool { return t.Status != Identical })
}

// Totals are the figures of several layers together.
type Totals struct{ NormA, NormB, NormDifference, Cosine float64 }

// TotalsOf computes the figures of layers that both adapters have.
func TotalsOf(layers []ComparedLayer) Totals {
	var s squares
	for i := range layers {
		s.add(layers[i].squares)
	}
	return Totals{math.Sqrt(s.a), math.Sqrt(s.b), math.Sqrt(s.difference), s.cosine()}
}

// IsPartial reports whether some layers have no counterpart that could be compared. Figures over
// all layers, such as Cosine, then mix what differs with what only has another name.
func (c *Comparison) IsPartial() bool { return len(c.OnlyA)+len(c.OnlyB)+len(c.NotCompared) > 0 }

// sameWithin is the distance of two equal updates in float64, relative to their norm.
const sameWithin = 1e-13

const defaultDirections = 8

// comparing is one call of Compare.
type comparing struct {
	sources [2]format.Source
	options CompareOptions
	matches []match
	result  *Comparison
}

// match is a module of one adapter or both.
type match struct {
	module string
	layers [2]*format.Layer // nil where an adapter lacks the module
	forms  [2]*factors
}

// match pairs the layers of both adapters by module, in the order of the first.
func (c *comparing) match() error {
	at := make(map[string]int)
	var adapters [2]*format.Adapter
	for side, src := range c.sources {
		m := src.Manifest()
		if err := format.Validate(m); err != nil {
			return err
		}
		if len(m.Adapters) != 1 {
			return fault.New(fault.Unsupported, "this is a bundle of %d adapters, want one", len(m.Adapters))
		}
		a := &m.Adapters[0]
		adapters[side] = a
		_, hasThrees := featureOf(a, format.FeatureExpertFactors)
		for i := range a.Layers {
			l := &a.Layers[i]
			f, err := factorsOf(l, m.Tensors, hasThrees)
			if err != nil {
				c.skip(l.Module, err.Error())
				continue
			}
			n, isKnown := at[l.Module]
			if !isKnown {
				n = len(c.matches)
				at[l.Module], c.matches = n, append(c.matches, match{module: l.Module})
			}
			c.matches[n].layers[side], c.matches[n].forms[side] = l, f
		}
	}
	kept := c.matches[:0]
	for _, m := range c.matches {
		if why := m.whyNot(adapters); why != "" {
			c.skip(m.module, why)
			continue
		}
		switch {
		case m.layers[0] == nil:
			c.result.OnlyB = append(c.result.OnlyB, m.module)
		case m.layers[1] == nil:
			c.result.OnlyA = append(c.result.OnlyA, m.module)
		}
		kept = append(kept, m)
	}
	c.matches = kept
	return nil
}

func (c *comparing) skip(module, why string) {
	c.result.NotCompared = append(c.result.NotCompared, NotCompared{module, why})
}

// whyNot returns the reason why the two layers of a module cannot be compared, or "".
func (m *match) whyNot(adapters [2]*format.Adapter) string {
	x, y := m.layers[0], m.layers[1]
	if x == nil || y == nil {
		return ""
	}
	f, g := m.forms[0], m.forms[1]
	if !f.equals(g) || x.Kind != y.Kind {
		return fmt.Sprintf("%d×%d (%s) in the one, %d×%d (%s) in the other", f.rows, f.cols, x.Kind, g.rows, g.cols, y.Kind)
	}
	if is, was := meaningOf(adapters[0], x), meaningOf(adapters[1], y); is != was {
		why := fmt.Sprintf("the factors mean different things: %s, and %s", is, was)
		if hint := hintRows(is, was); hint != "" {
			why += "; " + hint
		}
		return why
	}
	return ""
}

// compare compares the layers of a module.
func (c *comparing) compare(ctx context.Context, m *match) (*ComparedLayer, error) {
	l := &ComparedLayer{Module: m.module, Cosine: 0, Interference: 1, Similarity: [][]float64{}}
	var sides [2][]*thin.Matrix
	for side, f := range m.forms {
		if f == nil {
			continue
		}
		x := m.layers[side]
		all, nonFinite, err := f.read(ctx, c.sources[side])
		if err != nil {
			return nil, err
		}
		if nonFinite > 0 {
			return nil, fault.New(fault.Check, "%s of the factors %s NaN or infinite", fault.Count(nonFinite, "value"), fault.Choose(nonFinite, "is", "are"))
		}
		for _, b := range all {
			b.Balance()
			b.Scale(x.Scale())
		}
		sides[side] = all
		l.Kind, l.M, l.N = string(x.Kind), f.rows, f.cols
		if side == 0 {
			l.RankA, l.ScaleA = f.rank, x.Scale()
		} else {
			l.RankB, l.ScaleB = f.rank, x.Scale()
		}
	}
	main, most := 0, -1.0
	for i := range max(len(sides[0]), len(sides[1])) {
		s, err := squaresOf(ctx, blockOf(sides[0], i), blockOf(sides[1], i))
		if err != nil {
			return nil, err
		}
		l.squares.add(s)
		if s.a+s.b > most {
			main, most = i, s.a+s.b
		}
	}
	if s := &l.squares; s.a-s.a != 0 || s.b-s.b != 0 {
		return nil, fault.New(fault.Unsupported, "‖ΔW‖² is beyond float64")
	}
	if sides[0] == nil || sides[1] == nil || l.M == 0 || l.N == 0 {
		return l, nil
	}
	return l, c.overlap(ctx, l, sides[0][main], sides[1][main])
}

func blockOf(all []*thin.Matrix, i int) *thin.Matrix {
	if all == nil {
		return nil
	}
	return all[i]
}

// squaresOf computes the squares of a block. A nil matrix is zero.
func squaresOf(ctx context.Context, x, y *thin.Matrix) (s squares, err error) {
	square := func(x *thin.Matrix) float64 {
		if x == nil || err != nil {
			return 0
		}
		var n float64
		n, err = x.Norm(ctx)
		return math.Ldexp(n*n, 2*x.Exponent)
	}
	s.a, s.b = square(x), square(y)
	if x == nil || y == nil || err != nil {
		s.difference = s.a + s.b
		return s, err
	}
	distance, err := thin.Distance(ctx, x, 1, y)
	if err != nil {
		return s, err
	}
	s.difference = distance * distance
	product, err := thin.Inner(ctx, x, y)
	s.product = math.Ldexp(product, x.Exponent+y.Exponent)
	return s, err
}

// overlap compares the spaces of the first singular vectors of two blocks.
func (c *comparing) overlap(ctx context.Context, l *ComparedLayer, x, y *thin.Matrix) error {
	u, err := c.directions(ctx, x)
	if err != nil {
		return err
	}
	v, err := c.directions(ctx, y)
	if err != nil {
		return err
	}
	k := min(u.R, v.R)
	if l.Directions = k; k == 0 {
		return nil
	}
	in := similarities(u.A, v.A, l.N, u.R, v.R)
	out := similarities(u.B, v.B, l.M, u.R, v.R)
	l.Similarity = in
	l.Overlap, l.Random = in[k-1][k-1], float64(k)/float64(l.N)
	l.OverlapOut, l.RandomOut = out[k-1][k-1], float64(k)/float64(l.M)
	return nil
}

// directions returns the first singular vectors of a matrix that rounding has not made up.
func (c *comparing) directions(ctx context.Context, x *thin.Matrix) (*thin.Matrix, error) {
	d, err := x.Decompose(ctx)
	if err != nil {
		return nil, err
	}
	k := 0
	for k < min(c.options.Directions, len(d.Sigma)) && d.Sigma[k] > resolution(x.M, x.N)*d.Sigma[0] {
		k++
	}
	return d.Vectors(ctx, k)
}

// similarities returns φ(i, j) for i ≤ a and j ≤ b, of orthonormal columns X (rows×a) and Y
// (rows×b).
func similarities(x, y []float64, rows, a, b int) [][]float64 {
	cosines := make([]float64, a*b)
	dense.AddTransposedProduct(cosines, x, y, rows, a, b)
	phi := make([][]float64, a)
	for i := range phi {
		phi[i] = make([]float64, b)
		var row float64 // the squares of row i so far
		for j := range phi[i] {
			row += cosines[i*b+j] * cosines[i*b+j]
			sum := row
			if i > 0 {
				sum += phi[i-1][j] * float64(min(i, j+1))
			}
			phi[i][j] = min(sum/float64(min(i+1, j+1)), 1)
		}
	}
	return phi
}

// finish computes the totals, and lists the layers that both adapters have.
func (c *comparing) finish(layers []*ComparedLayer) {
	var total squares
	for i, l := range layers {
		s := &l.squares
		total.add(*s)
		l.NormA, l.NormB, l.NormDifference = math.Sqrt(s.a), math.Sqrt(s.b), math.Sqrt(s.difference)
		l.Cosine, l.Interference = s.cosine(), s.interference()
		if m := &c.matches[i]; m.layers[0] != nil && m.layers[1] != nil {
			c.result.Layers = append(c.result.Layers, *l)
		}
	}
	r := c.result
	r.NormA, r.NormB, r.NormDifference = math.Sqrt(total.a), math.Sqrt(total.b), math.Sqrt(total.difference)
	r.Cosine, r.Interference = total.cosine(), total.interference()
}
