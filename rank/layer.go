package rank

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/fault"
)

// slab is the decomposition of one matrix: a whole tensor, or one expert.
type slab struct {
	*Decomposition
	left, right []float32 // rows×K and K×cols
	update      *update   // without Δ
	squares     float64   // ‖Δ − left·right‖² before rounding
	rounded     float64   // the same after rounding to the stored dtype
}

// decompose forms and decomposes one matrix of a tensor.
func (r *extracting) decompose(
	ctx context.Context, p *pair, v view, index int, rule Rule,
) (*slab, error) {
	u, err := p.difference(ctx, int64(index*v.rows*v.cols), v.rows, v.cols, &r.room)
	if err != nil {
		return nil, err
	}
	svd := r.options.SVD
	svd.Workers = r.options.Workers
	s, err := truncate(ctx, u, p.name, rule, r.options.DType, svd)
	if err == nil {
		r.report.Products += s.Products
		r.report.Flops += s.Flops
	}
	return s, err
}

// truncate decomposes Δ to the rank that rule chooses, counting the error of factors stored with
// dtype d. It releases Δ.
func truncate(
	ctx context.Context, u *update, name string, rule Rule, d dtype.Type, svd Options,
) (*slab, error) {
	exponent, err := u.normalise(ctx)
	if err != nil {
		return nil, err
	}
	energy := math.Ldexp(u.energy, 2*exponent)
	if f, ok := rule.(NoiseFloor); ok {
		f.Sigma = math.Ldexp(u.noise, exponent)
		rule = f
	}
	t := newTruncation(u.dense, energy, svd)
	for {
		found, err := t.to(ctx, rule)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		s := &slab{Decomposition: found, update: u, squares: energy, rounded: energy}
		if err := s.measure(ctx, d, name, exponent); err != nil {
			return nil, err
		}
		if rule, err = tightened(rule, s.K, s.squares, s.rounded, energy, min(u.dense.M, u.dense.N)); err != nil {
			return nil, fault.New(fault.Check, "the error of %q as stored is %v", name, err).
				WithHint("allow a larger error with rank.MaxError; F32 factors are the most precise")
		}
		if rule == nil {
			s.unscale(exponent)
			return s, nil
		}
	}
}

// normalise is Dense.normalise, which most updates do not need.
func (u *update) normalise(ctx context.Context) (exponent int, err error) {
	if u.isPlain && exponentFor(u.energy) == 0 {
		return 0, nil
	}
	return u.dense.normalise(ctx, u.energy)
}

// tightened returns the rule to try next if rounding has raised the error above the limit of rule,
// or nil if the error is within the limit. It fails if rounding alone exceeds the limit, or if no
// singular value is left. k values of most are kept; left and rounded are the squares of the errors
// before and after rounding, of ‖Δ‖² = energy.
func tightened(rule Rule, k int, left, rounded, energy float64, most int) (Rule, error) {
	e, ok := rule.(maxError)
	if e.allowed == 0 {
		e.allowed = e.relative
	}
	allowed := e.allowed * e.allowed * energy
	if !ok || rounded <= allowed || k == 0 || e.most > 0 && k >= e.most {
		return nil, nil
	}
	lost := rounded - left
	if lost >= allowed || k >= most {
		return nil,
			fmt.Errorf("%.3g of |Δ|, and %.3g are allowed; rounding the factors alone costs %.3g",
				norm(rounded/energy), e.allowed, norm(lost/energy))
	}
	e.relative, e.least = min(e.relative, norm((allowed-lost)/energy)), k+1
	return e, nil
}

// measure forms the factors and compares them with Δ, before and after rounding to the stored
// dtype. Δ is scaled: 2^exponent times the true update.
func (s *slab) measure(ctx context.Context, t dtype.Type, name string, exponent int) (err error) {
	if s.K == 0 {
		return nil
	}
	dense := s.update.dense
	b, a := s.Decomposition.factors()
	s.left, s.right = narrowed(b), narrowed(a)
	if s.Wide {
		s.squares, err = dense.residualWide(ctx, b, a, s.K)
	} else {
		s.squares, err = dense.ResidualSquares(ctx, s.left, s.right, s.K)
	}
	if err != nil || t == dtype.F32 && !s.Wide {
		s.rounded = s.squares
		return err
	}
	back := float32(math.Ldexp(1, -exponent/2))
	forth := 1 / back
	left, right := times(roundTo(t, times(s.left, back)), forth),
		times(roundTo(t, times(s.right, back)), forth)
	if s.Wide {
		widen(b, left)
		widen(a, right)
		s.rounded, err = dense.residualWide(ctx, b, a, s.K)
	} else {
		s.rounded, err = dense.ResidualSquares(ctx, left, right, s.K)
	}
	if err == nil && s.rounded-s.rounded != 0 {
		return fault.New(fault.Unsupported, "the factors of %q do not fit the range of %v", name, t).
			WithHint("store them with ExtractOptions.DType=bf16 or f32")
	}
	return err
}

// unscale undoes the factor 2^exponent in all results, and releases Δ.
func (s *slab) unscale(exponent int) {
	s.update.dense = nil
	if exponent == 0 {
		return
	}
	back := float32(math.Ldexp(1, -exponent/2))
	s.left, s.right = times(s.left, back), times(s.right, back)
	for _, list := range [][]float64{s.S, s.Estimates} {
		for i := range list {
			list[i] = math.Ldexp(list[i], -exponent)
		}
	}
	s.Error = math.Ldexp(s.Error, -exponent)
	for _, squares := range []*float64{&s.squares, &s.rounded, &s.Energy} {
		*squares = math.Ldexp(*squares, -2*exponent)
	}
}

func times(x []float32, factor float32) []float32 {
	if factor == 1 {
		return x
	}
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = v * factor
	}
	return y
}

// layer decomposes one tensor, expert by expert if it stacks several.
func (r *extracting) layer(ctx context.Context, p *pair, v view) error {
	rule := r.options.Rule
	if r.options.ConvRank > 0 && v.hasKernel() {
		rule = FixedRank{r.options.ConvRank}
	}
	switch bought := r.ranks[p.name]; {
	case r.ranks != nil && bought == 0:
		energy, err := p.energy(ctx, 0, p.tuned.ref.Tensor.Elements())
		r.report.Skipped = append(r.report.Skipped,
			Skipped{Tensor: p.name, Why: whyBudget, Bytes: bytesOf(r.Extraction, p.name), energy: energy})
		return err
	case r.ranks != nil:
		rule = FixedRank{bought}
	}
	slabs := make([]*slab, v.slabs)
	k := 0
	for i := range slabs {
		var err error
		if slabs[i], err = r.decompose(ctx, p, v, i, rule); err != nil {
			return err
		}
		k = max(k, slabs[i].K)
	}
	if k == 0 {
		why := Unchanged
		if slices.ContainsFunc(slabs, func(s *slab) bool { return s.update.tooSmall > 0 }) {
			why = whyTooSmall
		}
		r.report.Skipped = append(r.report.Skipped, Skipped{Tensor: p.name, Why: why, Bytes: bytesOf(r.Extraction, p.name)})
		return nil
	}
	if f, ok := rule.(FixedRank); ok && r.peft != nil && v.kind == format.Expert {
		// PEFT ignores a rank_pattern for a parameter, with a warning. With one rank for all there
		// is no pattern.
		k = f.K
	}
	if err := r.store(v, k, slabs); err != nil {
		return err
	}
	r.tensors = append(r.tensors, p.name)
	if v.parameter != "" {
		if r.parameters == nil {
			r.parameters = make(map[int]string)
		}
		r.parameters[len(r.adapter.Layers)-1] = v.parameter
	}
	r.report.Layers = append(r.report.Layers, described(v, k, slabs))
	return nil
}

// described reports on a layer. The energies of stacked experts are sums; singular values and noise
// edge are those of the expert with the most energy.
func described(v view, k int, slabs []*slab) ExtractedLayer {
	m, n := v.rows, v.cols
	if v.transposed {
		m, n = n, m
	}
	l := ExtractedLayer{Module: v.module, Kind: string(v.kind), M: m, N: n, Rank: k,
		Ranks: make([]RankEnergy, len(reportedRanks))}
	for i, rank := range reportedRanks {
		l.Ranks[i].Rank = rank
	}
	main := slabs[0]
	var base float64
	for _, s := range slabs {
		if s.Energy > main.Energy {
			main = s
		}
		e := s.update.energy
		l.energies.all += e
		l.energies.left += s.squares
		l.energies.rounded += s.rounded
		base += s.update.baseNorm * s.update.baseNorm
		for i, rank := range reportedRanks {
			l.Ranks[i].Energy += sumSquares(s.Estimates[:min(rank, len(s.Estimates))])
			l.Ranks[i].AtLeast = l.Ranks[i].AtLeast || !s.Complete && rank > s.K
		}
	}
	all := l.energies.all
	l.NearBest = isNearBest(l.energies)
	l.energies.kept = all - l.energies.left
	l.Energy, l.Error, l.Rounded, l.Frobenius = 1-l.energies.left/all,
		math.Sqrt(l.energies.left/all), math.Sqrt(l.energies.rounded/all), math.Sqrt(all)
	for i := range l.Ranks {
		l.Ranks[i].Energy = min(1, l.Ranks[i].Energy/all)
	}
	if base > 0 {
		l.RelativeNorm = math.Sqrt(all / base)
	}
	l.SingularValues = main.S
	l.NoiseEdge = NoiseFloor{Sigma: main.update.noise}.Edge(v.rows, v.cols)
	return l
}

// isNearBest reports whether the stored factors have nearly the least error possible at their rank.
// Before rounding they have it up to a part in ten thousand, as far as float32 resolves Δ.
func isNearBest(e energies) bool {
	const resolved, nearly = 1e-6, 1.0009
	return e.left >= resolved*resolved*e.all && e.rounded <= nearly*nearly*e.left
}

// store writes the factors A and B of a layer to the spool.
func (r *extracting) store(v view, k int, slabs []*slab) error {
	kind := v.kind
	switch v.kind {
	case format.Expert:
		kind = v.expertKind(r.peft != nil)
		r.adapter.Requires = append(r.adapter.Requires,
			format.Requirement{Feature: format.FeatureExperts, Where: v.parameter})
	case format.Conv:
		r.adapter.Requires = append(r.adapter.Requires,
			format.Requirement{Feature: format.FeatureConvolution, Where: v.module})
	}
	a, b := v.join(k, slabs)
	shapeA, shapeB := v.shapes(k, len(a), len(b))
	nameA, nameB := v.module+".lora_A.weight", v.module+".lora_B.weight"
	if v.kind == format.Embedding {
		nameA, nameB = v.module+".lora_embedding_A", v.module+".lora_embedding_B"
	}
	d := r.options.DType
	iA, err := r.spool.add(nameA, d, shapeA, encode(d, a))
	if err != nil {
		return err
	}
	iB, err := r.spool.add(nameB, d, shapeB, encode(d, b))
	if err != nil {
		return err
	}
	r.adapter.Layers = append(r.adapter.Layers, format.Layer{
		Module: v.module, Kind: kind, Rank: k, Alpha: float64(k), Scaling: format.AlphaOverR,
		Roles: map[format.Role]int{format.RoleA: iA, format.RoleB: iB},
	})
	return nil
}

// join returns the factors A and B of rank k for everything that a tensor stacks.
func (v view) join(k int, slabs []*slab) (a, b []float32) {
	switch v.kind {
	case format.Expert:
		return stack(v, k, slabs)
	case format.Conv:
		return slabs[0].right, slabs[0].left
	}
	return slabs[0].factors(v, k)
}

// shapes returns the shapes of factors with nA and nB elements. A convolution has A r×in×k… and B
// out×r×1….
func (v view) shapes(k, nA, nB int) (a, b []uint64) {
	ranks := v.slabs * k
	a, b = []uint64{uint64(ranks), uint64(nA / ranks)}, []uint64{uint64(nB / ranks), uint64(ranks)}
	if v.kind == format.Conv {
		a = append(a[:1], v.shape[1:]...)
		for range v.shape[2:] {
			b = append(b, 1)
		}
	}
	return a, b
}

// expertKind returns the kind of expert factors. For square matrices the kind tells which dimension
// A reads; PEFT's A reads the inputs.
func (v view) expertKind(forPEFT bool) format.Kind {
	switch {
	case v.rows != v.cols:
		return format.Expert
	case forPEFT:
		return format.ExpertInputs
	case v.transposed:
		return format.ExpertFirst
	}
	return format.ExpertSecond
}

// factors returns A (k×n) and B (m×k) of a matrix, padded with zeros up to rank k. A transposed
// matrix is left·right = (B·A)ᵀ.
func (s *slab) factors(v view, k int) (a, b []float32) {
	left, right := make([]float32, v.rows*k), make([]float32, k*v.cols)
	for i := range v.rows {
		copy(left[i*k:], s.left[i*s.K:(i+1)*s.K])
	}
	copy(right, s.right)
	if v.transposed {
		return dense.Flip(left, v.rows, k), dense.Flip(right, k, v.cols)
	}
	return right, left
}

// stack joins the factors of the experts as PEFT does: in A, (experts·k)×n, the expert varies
// slowest; in B, m×(k·experts), it varies fastest.
func stack(v view, k int, slabs []*slab) (a, b []float32) {
	n := len(slabs)
	for e, s := range slabs {
		ae, be := s.factors(v, k)
		a = append(a, ae...)
		if b == nil {
			b = make([]float32, len(be)*n)
		}
		for i := range len(be) / k {
			for t := range k {
				b[i*k*n+t*n+e] = be[i*k+t]
			}
		}
	}
	return a, b
}

// encode stores values with dtype d, each rounded once.
func encode(d dtype.Type, x []float32) []byte {
	b := make([]byte, len(x)*d.Size())
	for i, v := range x {
		dtype.Store(d, b, i, float64(v))
	}
	return b
}

// roundTo returns the values after encode's rounding.
func roundTo(d dtype.Type, x []float32) []float32 {
	y := make([]float32, len(x))
	dtype.Widen(y, d, encode(d, x))
	return y
}
