package rank

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// slab is the decomposition of one matrix of a tensor: of the whole tensor, or of one expert.
type slab struct {
	*Decomposition
	left, right []float32 // rows×K and K×cols
	update      *update   // without Δ itself
	squares     float64   // ‖Δ − left·right‖²
	rounded     float64   // the same for the factors as they are stored
}

// decompose forms and decomposes one matrix of a tensor.
func (r *extracting) decompose(ctx context.Context, p *pair, v view, index int, rule Rule) (*slab, error) {
	u, err := p.difference(ctx, int64(index*v.rows*v.cols), v.rows, v.cols, r.options.Workers)
	if err != nil {
		return nil, err
	}
	if f, ok := rule.(NoiseFloor); ok {
		f.Sigma = u.noise
		rule = f
	}
	svd := r.options.SVD
	svd.Workers = r.options.Workers
	d, err := TruncatedSVD(ctx, u.dense, u.energy, rule, svd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	s := &slab{Decomposition: d, update: u, squares: u.energy, rounded: u.energy}
	r.report.Products += d.Products
	r.report.Flops += d.Flops
	if d.K > 0 {
		s.left, s.right = d.Factors()
		if s.squares, err = u.dense.ResidualSquares(ctx, s.left, s.right, d.K); err != nil {
			return nil, err
		}
		s.rounded = s.squares
		if t := r.options.DType; t != dtype.F32 && t != dtype.F64 {
			if s.rounded, err = u.dense.ResidualSquares(ctx, roundTo(t, s.left), roundTo(t, s.right), d.K); err != nil {
				return nil, err
			}
			if s.rounded-s.rounded != 0 {
				return nil, fault.New(fault.Unsupported, "the factors of %q do not fit the range of %v", p.name, t).WithHint("store them with --dtype bf16 or f32")
			}
		}
	}
	u.dense = nil
	return s, nil
}

// layer decomposes one tensor, expert by expert where it stacks several.
func (r *extracting) layer(ctx context.Context, p *pair, v view) error {
	rule := r.options.Rule
	if r.ranks != nil {
		if r.ranks[p.name] == 0 {
			energy, err := p.energy(ctx, 0, p.tuned.ref.Tensor.Elements())
			r.report.Skipped = append(r.report.Skipped, Skipped{Tensor: p.name, Why: whyBudget, energy: energy})
			return err
		}
		rule = FixedRank{r.ranks[p.name]}
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
		r.report.Skipped = append(r.report.Skipped, Skipped{Tensor: p.name, Why: why})
		return nil
	}
	if f, ok := rule.(FixedRank); ok && r.peft != nil && v.kind == format.Expert {
		// PEFT takes a pattern for a parameter and says that it ignores it: with one rank for all there is none.
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
	r.describe(v, k, slabs)
	return nil
}

// describe adds a layer to the report. For stacked experts energies are those of all, and the singular values and the noise edge
// those of the expert with most energy.
func (r *extracting) describe(v view, k int, slabs []*slab) {
	m, n := v.rows, v.cols
	if v.transposed {
		m, n = n, m
	}
	l := ExtractedLayer{Module: v.module, Kind: string(v.kind), M: m, N: n, Rank: k, Ranks: make([]RankEnergy, len(reportedRanks))}
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
	l.energies.kept = all - l.energies.left
	l.Energy, l.Error, l.Rounded, l.Frobenius = 1-l.energies.left/all, math.Sqrt(l.energies.left/all), math.Sqrt(l.energies.rounded/all), math.Sqrt(all)
	for i := range l.Ranks {
		l.Ranks[i].Energy = min(1, l.Ranks[i].Energy/all)
	}
	if base > 0 {
		l.RelativeNorm = math.Sqrt(all / base)
	}
	l.SingularValues, l.NoiseEdge = main.S, NoiseFloor{Sigma: main.update.noise}.Edge(v.rows, v.cols)
	r.report.Layers = append(r.report.Layers, l)
}

// store puts the factors of a layer into the spool: A and B of the layer's kind.
func (r *extracting) store(v view, k int, slabs []*slab) error {
	var a, b []float32
	var shapeA, shapeB []uint64
	switch v.kind {
	case format.Expert:
		a, b = stack(v, k, slabs)
		shapeA, shapeB = []uint64{uint64(v.slabs * k), uint64(len(a) / (v.slabs * k))}, []uint64{uint64(len(b) / (v.slabs * k)), uint64(v.slabs * k)}
		r.adapter.Requires = append(r.adapter.Requires, format.Requirement{Feature: format.FeatureExperts, Where: v.parameter})
	case format.Conv: // A r×in×k…, B out×r×1…
		a, b = slabs[0].right, slabs[0].left
		shapeA, shapeB = append([]uint64{uint64(k)}, v.shape[1:]...), []uint64{uint64(v.rows), uint64(k)}
		for range v.shape[2:] {
			shapeB = append(shapeB, 1)
		}
		r.adapter.Requires = append(r.adapter.Requires, format.Requirement{Feature: format.FeatureConvolution, Where: v.module})
	default:
		a, b = slabs[0].factors(v, k)
		shapeA, shapeB = []uint64{uint64(k), uint64(len(a) / k)}, []uint64{uint64(len(b) / k), uint64(k)}
	}
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
		Module: v.module, Kind: v.kind, Rank: k, Alpha: float64(k), Scaling: format.AlphaOverR,
		Roles: map[format.Role]int{format.RoleA: iA, format.RoleB: iB},
	})
	return nil
}

// factors returns A (k×n) and B (m×k) of a matrix, whose rank may be below k: the rest is zero. A matrix that is stored n×m is
// left·right = (B·A)ᵀ.
func (s *slab) factors(v view, k int) (a, b []float32) {
	left, right := make([]float32, v.rows*k), make([]float32, k*v.cols)
	for i := range v.rows {
		copy(left[i*k:], s.left[i*s.K:(i+1)*s.K])
	}
	copy(right, s.right)
	if v.transposed {
		return transpose(left, v.rows, k), transpose(right, k, v.cols)
	}
	return right, left
}

// stack joins the factors of the experts as PEFT does: A is (experts·k)×n with the expert slowest, and B m×(k·experts) with the
// expert fastest.
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

func transpose(x []float32, rows, cols int) []float32 {
	y := make([]float32, len(x))
	for i := range rows {
		for j := range cols {
			y[j*rows+i] = x[i*cols+j]
		}
	}
	return y
}

// encode stores values as d, each rounded once.
func encode(d dtype.Type, x []float32) []byte {
	b := make([]byte, len(x)*d.Size())
	for i, v := range x {
		dtype.Store(d, b, i, float64(v))
	}
	return b
}

// roundTo returns the values that encode stores.
func roundTo(d dtype.Type, x []float32) []float32 {
	y := make([]float32, len(x))
	dtype.Widen(y, d, encode(d, x))
	return y
}
