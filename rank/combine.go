package rank

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/parallel"
)

// CombineOptions says how Combine and Resize make an adapter. The zero value is an exact sum.
type CombineOptions struct {
	// Weights has a number for each adapter; nil means 1 for all. Resize takes none.
	Weights []float64
	// Rule chooses the rank of each layer by the singular values of its sum. nil keeps all, by
	// concatenation: the rank of a sum is then the sum of the ranks.
	Rule Rule
	// Budget chooses the ranks of all layers together, in place of a Rule, so that the factors have
	// at most so many bytes and the sum over all layers loses the least energy. 0 means no budget.
	Budget int64
	// Method joins the updates; the zero value adds them. Density is the share of the elements that
	// other methods keep of each ΔW, and Seed that of random choices.
	Method  Method
	Density float64
	Seed    uint64
	// DType is that of new factors: F64, F32, F16 or BF16. 0 means the widest dtype of the factors
	// that they are made of, and F32 for a concatenation that 16 bits would round.
	DType dtype.Type

	Path    string        // the output's path; new factors wait beside it
	Output  output.Output // or in its scratch space; with neither they wait in a temporary file
	Workers int           // goroutines; 0 means one per processor
	// Layer, if not nil, is called when a layer is done, by one goroutine at a time.
	Layer func(module string)
}

// CombineReport describes the result of Combine and Resize.
type CombineReport struct {
	Layers   []CombinedLayer `json:"layers"`
	Skipped  []Skipped       `json:"skipped"`
	Energy   float64         `json:"energy"`        // kept share of Σ‖ΔW‖² over all layers
	Error    float64         `json:"error"`         // √ of the lost share, before the factors are rounded
	Rounded  float64         `json:"rounded_error"` // √ of the lost share, as stored
	Bytes    int64           `json:"bytes"`         // of all tensors
	Was      int64           `json:"bytes_before"`  // of all tensors of the adapters
	Warnings []string        `json:"warnings"`
}

// CombinedLayer is a layer of the result. Errors are Frobenius norms relative to that of the
// layer's ΔW = Σ w·s·B·A. If it stacks experts, they are over all of them, and the singular values
// are those of the expert with the largest ‖ΔW‖.
type CombinedLayer struct {
	Module         string    `json:"module"`
	Kind           string    `json:"kind"`
	M              int       `json:"m"` // of ΔW, or of that of an expert
	N              int       `json:"n"`
	Was            []int     `json:"ranks_before"` // of each adapter that has the layer
	Rank           int       `json:"rank"`
	Energy         float64   `json:"energy"`
	Error          float64   `json:"error"`
	Rounded        float64   `json:"rounded_error"`
	Exact          bool      `json:"exact"`     // the stored factors are ΔW without any error
	Frobenius      float64   `json:"frobenius"` // ‖ΔW‖_F
	SingularValues []float64 `json:"singular_values"`

	energies energies
}

// Combine returns the adapter of Σ w·ΔW, over one or more adapters for the same model. Layers with
// the same module are added (convert.Alike gives adapters of several dialects the same names):
// without a rule by concatenation, B = [B₁ B₂ …] and A = [A₁; A₂; …], and otherwise by the best
// approximation of the rank that the rule chooses, from QR decompositions of the factors. No ΔW is
// formed. The report gives the error of the factors as they are stored.
//
// A bias of B and a difference are added, too. What is not linear stays as it is if one adapter has
// it, with the weight 1, and is an error of kind format.ErrUnsupported otherwise: DoRA, saved
// modules and trained token rows. So are methods whose update is no thin product ([ToLoRA] makes
// LoRA of them). The caller closes the result before the adapters.
func Combine(
	ctx context.Context, adapters []format.Source, o CombineOptions,
) (format.Source, *CombineReport, error) {
	if err := o.check(len(adapters)); err != nil {
		return nil, nil, err
	}
	return combine(ctx, adapters, &o)
}

// Resize returns the adapter with lower ranks: the best approximation of each layer of the rank
// that the rule or the budget chooses. The scale of each layer stays as it is. A layer that loses
// nothing keeps its factors. The caller closes the result before src.
func Resize(ctx context.Context, src format.Source, o CombineOptions) (format.Source, *CombineReport, error) {
	if err := o.check(1); err != nil {
		return nil, nil, err
	}
	if o.Weights != nil || (o.Rule == nil) == (o.Budget == 0) {
		return nil, nil, errors.New("CombineOptions: Resize takes either a Rule or a Budget, and no Weights")
	}
	return combine(ctx, []format.Source{src}, &o)
}

func (o *CombineOptions) check(n int) error {
	switch {
	case n == 0:
		return errors.New("no adapters to combine")
	case o.Weights != nil && len(o.Weights) != n:
		return fmt.Errorf("CombineOptions.Weights has %d numbers for %s", len(o.Weights), fault.Count(n, "adapter"))
	case o.Rule != nil && o.Budget != 0:
		return errors.New("CombineOptions: set at most one of Rule and Budget")
	case o.Path != "" && o.Output != nil:
		return errors.New("CombineOptions: set at most one of Path and Output")
	case o.Budget < 0:
		return fmt.Errorf("CombineOptions.Budget is %d, want a positive number of bytes", o.Budget)
	case !slices.Contains([]dtype.Type{dtype.Invalid, dtype.F64, dtype.F32, dtype.F16, dtype.BF16}, o.DType):
		return fmt.Errorf("CombineOptions.DType is %v, want F64, F32, F16 or BF16, or 0", o.DType)
	}
	for i, w := range o.Weights {
		if w-w != 0 {
			return fmt.Errorf("the weight of adapter %d is %v, want a finite number", i+1, w)
		}
	}
	return errors.Join(checkRule(o.Rule), o.checkMethod())
}

func combine(ctx context.Context, adapters []format.Source, o *CombineOptions) (format.Source, *CombineReport, error) {
	c := &combining{remake: &remake{sources: adapters}, options: o, weights: o.Weights}
	if c.weights == nil {
		c.weights = slices.Repeat([]float64{1}, len(adapters))
	}
	if err := c.plan(); err != nil {
		return nil, nil, err
	}
	var err error
	if c.spool, err = newSpool(o.Path, o.Output); err != nil {
		return nil, nil, err
	}
	if err := c.run(ctx); err != nil {
		c.spool.Close()
		return nil, nil, err
	}
	return c.remake, c.report, nil
}

// CombineBytes estimates the memory that Combine and Resize take, and names the module of the
// largest layer. The adapters must be valid.
func CombineBytes(adapters []format.Source, o CombineOptions) (peak int64, module string) {
	type size struct{ ranks, sides, whole float64 }
	sizes := make(map[string]size)
	for _, src := range adapters {
		m := src.Manifest()
		for i := range m.Adapters {
			for j := range m.Adapters[i].Layers {
				l := &m.Adapters[i].Layers[j]
				f, err := factorsOf(l, m.Tensors, true)
				if err != nil {
					continue // Combine refuses it
				}
				s := sizes[l.Module]
				sizes[l.Module] = size{s.ranks + float64(f.rank), float64(f.n) * float64(f.rows+f.cols), 8 * float64(f.rows) * float64(f.cols)}
			}
		}
	}
	var most float64
	for name, s := range sizes {
		// The factors and their sum; the new factors; cores.
		need := 8 * (4*s.ranks*s.sides + 8*s.ranks*s.ranks)
		if o.Method != Sum {
			need += s.whole // ΔW in float32, and as much for its decomposition
		}
		if need > most || need == most && name < module {
			most, module = need, name
		}
	}
	n := float64(min(parallel.Workers(o.Workers), len(sizes)))
	return int64(min(most*n, math.MaxInt64/2)), module
}

// combining is one call of Combine or Resize.
type combining struct {
	*remake
	options *CombineOptions
	weights []float64
	groups  []*group
	sums    besideSums
	report  *CombineReport
	mu      sync.Mutex // of the spool, and of the calls of Layer
}

// group is the layers of one module.
type group struct {
	module  string
	members []member
	layer   format.Layer // of the result
	dtypes  []dtype.Type // of the factors, each once

	result    *CombinedLayer
	a, b      int // in the spool
	bias      int
	isKept    bool // the only member stays as it is
	isDropped bool // the budget buys nothing of it
}

// member is a layer of one adapter.
type member struct {
	source int
	layer  *format.Layer
	*factors
	weight float64 // w·s
}

// run computes all layers and composes the adapter.
func (c *combining) run(ctx context.Context) error {
	ranks, err := c.spend(ctx)
	if err != nil {
		return err
	}
	err = parallel.For(ctx, c.options.Workers, len(c.groups), func(_, i int) error {
		g := c.groups[i]
		rule := c.options.Rule
		if ranks != nil {
			rule = FixedRank{max(1, ranks[g.module])}
			g.isDropped = ranks[g.module] == 0 && len(g.others()) == 0
		}
		if err := c.layer(ctx, g, rule); err != nil {
			return fmt.Errorf("%s: %w", g.module, err)
		}
		if c.options.Layer != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.options.Layer(g.module)
		}
		return nil
	})
	if err == nil {
		err = c.addBeside(ctx)
	}
	if err != nil {
		return err
	}
	c.compose()
	return format.Validate(&c.manifest)
}

// others lists the roles of a group's layers besides A and B, sorted.
func (g *group) others() (roles []format.Role) {
	for _, m := range g.members {
		for role := range m.layer.Roles {
			if role != format.RoleA && role != format.RoleB && role != format.RoleAlpha && !slices.Contains(roles, role) {
				roles = append(roles, role)
			}
		}
	}
	slices.Sort(roles)
	return roles
}

// layer computes one layer of the result.
func (c *combining) layer(ctx context.Context, g *group, rule Rule) error {
	first := g.members[0]
	g.result = &CombinedLayer{
		Module: g.module, Kind: string(g.layer.Kind), M: first.rows, N: first.cols, Energy: 1, Exact: true,
		SingularValues: []float64{},
	}
	for _, m := range g.members {
		g.result.Was = append(g.result.Was, m.rank)
		g.result.Rank += m.rank
	}
	join := c.fill
	if c.options.Method != Sum {
		join = c.mix
	}
	if err := join(ctx, g, rule); err != nil {
		return err
	}
	return c.addBias(ctx, g)
}

// fill chooses the factors of a layer, and stores those that are new.
func (c *combining) fill(ctx context.Context, g *group, rule Rule) error {
	s, err := c.sum(ctx, g)
	if err != nil {
		return err
	}
	f := &truncatedSum{sum: s, rule: rule, dtype: c.dtypeOf(g)}
	if err := f.choose(ctx); err != nil {
		return err
	}
	g.result.SingularValues, g.result.energies.all = f.sigma, f.energy
	if g.isDropped {
		g.result.energies.left, g.result.energies.rounded = f.energy, f.energy
	}
	if g.isDropped {
		return nil
	}
	if f.rank >= s.rank { // nothing is left out
		g.isKept = g.isAlone() && (c.options.DType == dtype.Invalid || c.options.DType == g.dtypes[0] && len(g.dtypes) == 1)
		if g.isKept {
			return nil
		}
		if err := c.concatenate(ctx, g, s); err != nil {
			return err
		}
		_, err := f.tightened(s.rank, 0, g.result.energies.rounded)
		return err
	}
	made, err := f.round(ctx, g.scale())
	if err != nil {
		return err
	}
	g.layer.Scaling, g.layer.Fixed = format.Fixed, g.scale()
	g.result.Rank, g.result.Exact = f.rank, false
	g.result.energies.left, g.result.energies.rounded = f.left, f.rounded
	return c.put(g, made)
}

// scale is that of the layer of the result: the first one's, or 1 if that is 0.
func (g *group) scale() float64 {
	if s := g.members[0].layer.Scale(); s != 0 {
		return s
	}
	return 1
}

// isAlone reports whether a layer is that of one adapter, unchanged.
func (g *group) isAlone() bool {
	return len(g.members) == 1 && g.members[0].weight == g.members[0].layer.Scale()
}

// dtypeOf returns the dtype of the new factors of a group.
func (c *combining) dtypeOf(g *group) dtype.Type {
	if c.options.DType != dtype.Invalid {
		return c.options.DType
	}
	widest := g.dtypes[0]
	for _, d := range g.dtypes[1:] {
		switch {
		case d.Size() == widest.Size(): // F16 and BF16
			widest = dtype.F32
		case d.Size() > widest.Size():
			widest = d
		}
	}
	return widest
}

// concatenate stores the factors of all members beside each other. The layer has the scale of the
// first; the columns of the others are multiplied by the rest of the weight.
func (c *combining) concatenate(ctx context.Context, g *group, s *sum) error {
	first := g.members[0].weight
	if first == 0 {
		first = 1
	}
	d := c.dtypeOf(g)
	joined, err := c.joined(ctx, g, first)
	if err != nil {
		return err
	}
	exact := clones(joined)
	made, err := s.layout.store(joined, d)
	if err == nil && !made.isExact && c.options.DType == dtype.Invalid && d.Size() < 4 {
		joined = clones(exact) // store has rounded the blocks
		made, err = s.layout.store(joined, dtype.F32)
	}
	if err != nil {
		return err
	}
	g.layer.Scaling, g.layer.Fixed = format.Fixed, first
	isExact := made.isExact && g.isExactBy(first)
	g.result.Rank, g.result.Exact = made.rank, isExact
	g.result.energies.left, g.result.energies.rounded = 0, 0
	if !isExact {
		left := make([]float64, len(s.blocks))
		for i, x := range s.blocks {
			if g.isExactBy(first) {
				break
			}
			norm, err := x.Norm(ctx)
			if err != nil {
				return err
			}
			norm = math.Ldexp(norm*0x1p-53, x.Exponent) // the weights were rounded
			left[i] = norm * norm
		}
		if g.result.energies.rounded, err = s.residual(ctx, left, exact, joined, first); err != nil {
			return err
		}
	}
	return c.put(g, made)
}

// put writes the factors of a layer to the spool.
func (c *combining) put(g *group, f *stored) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.a, err = c.spool.add(g.module+".lora_A.weight", f.dtype, f.shapeA, f.a); err != nil {
		return err
	}
	g.b, err = c.spool.add(g.module+".lora_B.weight", f.dtype, f.shapeB, f.b)
	g.layer.Rank = f.rank
	return err
}

// compose lists the tensors and layers of the result in the order of the adapters.
func (c *combining) compose() {
	a := c.manifest.Adapters[0]
	c.report.Layers, c.report.Skipped = []CombinedLayer{}, []Skipped{}
	var total energies
	for _, g := range c.groups {
		r := g.result
		total.add(&r.energies)
		if g.isDropped {
			c.report.Skipped = append(c.report.Skipped, Skipped{Tensor: g.module, Why: whyBudget, energy: r.energies.all})
			continue
		}
		c.enterLayer(g)
		if g.members[0].form == inThrees {
			t, roles := c.manifest.Tensors, g.layer.Roles
			where := fmt.Sprintf("%s: lora_A %d, lora_B %d", g.module, t[roles[format.RoleA]].Shape, t[roles[format.RoleB]].Shape)
			a.Requires = append(a.Requires, format.Requirement{Feature: format.FeatureExpertFactors, Where: where})
		}
		a.Layers = append(a.Layers, g.layer)
		c.report.Layers = append(c.report.Layers, *r)
	}
	for i := range c.report.Layers {
		c.report.Layers[i].finish()
	}
	for i := range c.report.Skipped {
		s := &c.report.Skipped[i]
		s.Share = math.Sqrt(s.energy / total.all)
	}
	a.Requires = sortedRequires(a.Requires)
	c.sums.enter(c, &a)
	c.manifest.Adapters[0] = a
	if len(c.sources) == 1 {
		c.attachCard(0)
	}
	c.report.Energy, c.report.Error, c.report.Rounded = total.shares()
	for i := range c.manifest.Tensors {
		c.report.Bytes += c.manifest.Tensors[i].NBytes()
	}
}

// enterLayer gives the tensors of a layer their numbers.
func (c *combining) enterLayer(g *group) {
	first := g.members[0]
	l := &g.layer
	if g.isKept {
		l.Roles = c.keepRoles(first.source, first.layer, append(g.others(), format.RoleA, format.RoleB, format.RoleAlpha)...)
		return
	}
	setScale(l, l.Rank, l.Scale())
	roles := slices.DeleteFunc(g.others(), func(r format.Role) bool { return r == format.RoleBias && g.bias >= 0 })
	l.Roles = map[format.Role]int{format.RoleA: c.take(g.a), format.RoleB: c.take(g.b)}
	for _, m := range g.members {
		for role, i := range c.keepRoles(m.source, m.layer, roles...) {
			l.Roles[role] = i
		}
	}
	if g.bias >= 0 {
		l.Roles[format.RoleBias] = c.take(g.bias)
	}
}

func (e *energies) add(x *energies) {
	e.all, e.kept, e.left, e.rounded = e.all+x.all, e.kept+x.kept, e.left+x.left, e.rounded+x.rounded
}

// shares returns the kept share of the energy, and the errors before and after rounding, relative
// to the norm.
func (e *energies) shares() (energy, err, rounded float64) {
	if e.all == 0 {
		return 1, 0, 0
	}
	return max(0, 1-e.left/e.all), math.Sqrt(e.left / e.all), math.Sqrt(e.rounded / e.all)
}

// finish computes the figures of a layer from its energies.
func (l *CombinedLayer) finish() {
	l.Energy, l.Error, l.Rounded = l.energies.shares()
	l.Frobenius = math.Sqrt(l.energies.all)
}
