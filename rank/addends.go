package rank

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// addable lists the features of adapters whose updates can be added and truncated.
var addable = map[format.Feature]bool{
	format.FeatureConvolution:        true,
	format.FeatureDifference:         true,
	format.FeatureDoRA:               true,
	format.FeatureExpertFactors:      true,
	format.FeatureExperts:            true,
	format.FeatureInputMagnitude:     true,
	format.FeatureLoRABias:           true,
	format.FeatureMultiheadAttention: true,
	format.FeatureRotaryByModel:      true,
	format.FeatureRotaryPairs:        true,
	format.FeatureSetTensor:          true,
	format.FeatureTokenIndices:       true,
}

// plan groups the layers of all adapters by module, and refuses layers without a sum.
func (c *combining) plan() error {
	c.report = &CombineReport{Warnings: []string{}}
	var all []*format.Adapter
	for i, src := range c.sources {
		m := src.Manifest()
		if err := format.Validate(m); err != nil {
			return fmt.Errorf("adapter %d: %w", i+1, err)
		}
		if len(m.Adapters) != 1 {
			return fault.New(fault.Unsupported, "adapter %d is a bundle of %d, want one adapter", i+1, len(m.Adapters))
		}
		for j := range m.Tensors {
			c.report.Was += m.Tensors[j].NBytes()
		}
		all = append(all, &m.Adapters[0])
	}
	if err := checkFeatures(all); err != nil {
		return err
	}
	at := make(map[string]*group)
	for i, a := range all {
		tensors := c.sources[i].Manifest().Tensors
		_, hasThrees := featureOf(a, format.FeatureExpertFactors)
		for j := range a.Layers {
			l := &a.Layers[j]
			f, err := factorsOf(l, tensors, hasThrees)
			if err != nil {
				return asLoRAHint(err, l)
			}
			g := at[l.Module]
			if g == nil {
				g = &group{module: l.Module, layer: *l, bias: -1}
				at[l.Module], c.groups = g, append(c.groups, g)
			}
			if len(g.members) > 0 && g.members[len(g.members)-1].source == i {
				return fault.New(fault.Unsupported, "adapter %d has two layers for %q", i+1, l.Module)
			}
			for _, t := range []int{f.tensorsA, f.tensorsB} {
				if d := tensors[t].DType; !slices.Contains(g.dtypes, d) {
					g.dtypes = append(g.dtypes, d)
				}
			}
			weight := c.weights[i] * l.Scale()
			if math.IsInf(weight, 0) {
				return fault.New(fault.Unsupported, "the weight %v times the scale %v of %q is beyond float64", c.weights[i], l.Scale(), l.Module)
			}
			g.members = append(g.members, member{source: i, layer: l, factors: f, weight: weight})
		}
	}
	for _, g := range c.groups {
		if err := c.checkGroup(g); err != nil {
			return err
		}
		g.dropZeros()
	}
	if err := checkDivisions(all); err != nil {
		return err
	}
	c.describe(all)
	return c.sums.plan(c, all)
}

// checkDivisions refuses adapters that name the same weights in two ways: as one projection and as
// its parts, or as stacked experts and one by one. Their sum would change the weights twice, and
// merge refuses it.
func checkDivisions(all []*format.Adapter) error {
	type first struct {
		adapter      int
		module, form string
	}
	seen := make(map[string]first)
	for i, a := range all {
		for j := range a.Layers {
			module := a.Layers[j].Module
			forms := naming.Forms(module)
			for _, place := range slices.Sorted(maps.Keys(forms)) {
				was, isKnown := seen[place]
				switch {
				case !isKnown:
					seen[place] = first{i, module, forms[place]}
				case was.adapter != i && was.form != forms[place]:
					return fault.New(fault.Unsupported, "adapter %d has %q and adapter %d has %q, which name the same weights in two ways",
						was.adapter+1, was.module, i+1, module).
						WithHint("convert both to one dialect first, with the base (CreateOptions.Base), or merge them one after the other")
				}
			}
		}
	}
	return nil
}

// asLoRAHint adds the way out to the error for a layer that is no thin product.
func asLoRAHint(err error, l *format.Layer) error {
	if e, ok := err.(*fault.Error); ok && e.Kind == fault.Unsupported && e.Hint == "" {
		return e.WithHint("make LoRA of the layer first (rank.ToLoRA); it is of the kind %s", l.Kind)
	}
	return err
}

func featureOf(a *format.Adapter, f format.Feature) (where []string, has bool) {
	for _, q := range a.Requires {
		if q.Feature == f {
			where = append(where, q.Where)
		}
	}
	return where, where != nil
}

// checkFeatures refuses adapters that need more than their factors, and pairs of adapters that mean
// different things by them.
func checkFeatures(all []*format.Adapter) error {
	for i, a := range all {
		for _, q := range a.Requires {
			if q.Feature == format.FeatureHadamard || q.Feature == format.FeatureKronecker || q.Feature == format.FeatureTucker {
				continue // factorsOf names the layer
			}
			if !addable[q.Feature] {
				return fault.New(fault.Unsupported, "adapter %d requires %q (%s), and its updates cannot be added or truncated", i+1, q.Feature, q.Where).
					WithHint("merge it, and extract an adapter from the base and the result")
			}
		}
	}
	for i, a := range all[1:] {
		if err := sameMeaning(all[0], a, i+2); err != nil {
			return err
		}
	}
	_, err := orientationOf(all)
	return err
}

// orientationOf returns how the base stores its weights, as far as any adapter says it.
func orientationOf(all []*format.Adapter) (known format.Orientation, err error) {
	first := 0
	for i, a := range all {
		switch {
		case a.Orientation == format.OrientationUnknown:
		case known == format.OrientationUnknown:
			known, first = a.Orientation, i
		case a.Orientation != known:
			return known, fault.New(fault.Mismatch, "adapter %d is for weights stored %s and adapter %d for weights stored %s",
				first+1, known, i+1, a.Orientation).WithHint("the adapters are for different models")
		}
	}
	return known, nil
}

// sameMeaning refuses an adapter whose factors for a module that it has in common with the first
// mean something else: rows in another order, or another parameter of the module.
func sameMeaning(first, other *format.Adapter, number int) error {
	meanings := make(map[string]string, len(first.Layers))
	for i := range first.Layers {
		meanings[first.Layers[i].Module] = meaningOf(first, &first.Layers[i])
	}
	for i := range other.Layers {
		l := &other.Layers[i]
		was, isCommon := meanings[l.Module]
		if is := meaningOf(other, l); isCommon && is != was {
			return fault.New(fault.Unsupported, "the factors of %q mean different things: in adapter 1 %s, in adapter %d %s", l.Module, was, number, is).
				WithHint("%s", cmp.Or(hintRows(is, was), "convert both to one dialect first, with the base (CreateOptions.Base)"))
		}
	}
	return nil
}

// hintRows is the way out of two meanings of the factors of a module, if they are orders of rows;
// "" otherwise.
func hintRows(meanings ...string) string {
	if slices.Contains(meanings, ofLlamaCPP) || slices.Contains(meanings, ofTorchtune) {
		return "name the base, whose config.json says how many rows an attention head has (CreateOptions.BaseConfig)"
	}
	return ""
}

const (
	ofLlamaCPP  = "rows in the order of llama.cpp"
	ofTorchtune = "rows in an order that torchtune chose by the type of the model"
)

// meaningOf describes the rows of a layer's B.
func meaningOf(a *format.Adapter, l *format.Layer) string {
	for f, meaning := range map[format.Feature]string{
		format.FeatureRotaryPairs:        ofLlamaCPP,
		format.FeatureRotaryByModel:      ofTorchtune,
		format.FeatureMultiheadAttention: "an update that PEFT applies twice",
	} {
		if where, _ := featureOf(a, f); slices.Contains(where, l.Module) {
			return meaning
		}
	}
	if l.Kind.IsExpert() {
		module, depth := naming.CutNesting(l.Module)
		where, _ := featureOf(a, format.FeatureExperts)
		return fmt.Sprintf("number %d from outside of %s", depth+1, fault.List(naming.ParametersOf(module, where), 9))
	}
	return "rows in the order of the outputs"
}

// checkGroup refuses layers that cannot be added.
func (c *combining) checkGroup(g *group) error {
	first := g.members[0]
	if first.rows == 0 || first.cols == 0 {
		return fault.New(fault.Corrupt, "the update of %q has no elements: %d×%d", g.module, first.rows, first.cols)
	}
	for _, m := range g.members[1:] {
		if !m.equals(first.factors) || m.layer.Kind != first.layer.Kind {
			return fault.New(fault.Mismatch, "%q is %d×%d (%s) in adapter %d and %d×%d (%s) in adapter %d",
				g.module, first.rows, first.cols, first.layer.Kind, first.source+1, m.rows, m.cols, m.layer.Kind, m.source+1).
				WithHint("the adapters are for different models")
		}
	}
	for _, role := range g.others() {
		switch role {
		case format.RoleBias:
		case format.RoleMagnitude, format.RoleInputMagnitude:
			if len(g.members) > 1 || c.weights[first.source] != 1 {
				return fault.New(fault.Unsupported, "%q has magnitudes of DoRA, and DoRA has no sum: only one adapter may have the module, with the weight 1", g.module).
					WithHint("merge the adapters one after the other, and extract an adapter from the base and the result")
			}
		default:
			return fault.New(fault.Unsupported, "%q has a tensor of the role %q, which has no sum", g.module, role)
		}
	}
	total := 0
	for _, m := range g.members {
		total += m.rank
	}
	if total > format.MaxRank && c.options.Rule == nil && c.options.Budget == 0 {
		return fault.New(fault.Limit, "%q would have the rank %d, the limit is %d", g.module, total, format.MaxRank).
			WithHint("choose a rank with CombineOptions.Rule")
	}
	return nil
}

// dropZeros leaves out members of weight 0, but one.
func (g *group) dropZeros() {
	kept := slices.DeleteFunc(slices.Clone(g.members), func(m member) bool { return m.weight == 0 })
	if len(kept) > 0 && !slices.Contains(g.others(), format.RoleBias) {
		g.members = kept
	}
	g.layer = *g.members[0].layer
}

// describe makes the description of the result from those of the adapters.
func (c *combining) describe(all []*format.Adapter) {
	first := all[0]
	a := format.Adapter{Name: first.Name, Method: first.Method, Dialect: first.Dialect, Base: first.Base}
	a.Orientation, _ = orientationOf(all)
	for _, other := range all {
		a.Requires = sortedRequires(a.Requires, slices.DeleteFunc(slices.Clone(other.Requires), func(q format.Requirement) bool {
			return q.Feature == format.FeatureExpertFactors // enterLayer adds those of the new shapes
		}))
		if other.Method == format.MethodDoRA {
			a.Method = format.MethodDoRA
		}
		if other.Base.Name != first.Base.Name || other.Base.Revision != first.Base.Revision {
			a.Base = format.Base{}
		}
	}
	c.manifest.Adapters = []format.Adapter{a}
	if len(all) == 1 {
		m := c.sources[0].Manifest()
		c.manifest.Metadata, c.manifest.Provenance = m.Metadata, m.Provenance
		c.manifest.Notes = m.Notes
		return
	}
	for i, other := range all[1:] {
		if other.Base.Name != first.Base.Name && other.Base.Name != "" && first.Base.Name != "" {
			c.report.Warnings = append(c.report.Warnings, fmt.Sprintf("adapter 1 names the base %q and adapter %d the base %q", first.Base.Name, i+2, other.Base.Name))
		}
	}
	c.warnApart(all)
	c.manifest.Provenance.Source = fmt.Sprintf("the sum of %s", fault.Count(len(all), "adapter"))
}

// warnApart warns of adapters that have no module in common with any other.
func (c *combining) warnApart(all []*format.Adapter) {
	alone := make([]bool, len(all))
	for i, a := range all {
		alone[i] = len(a.Layers) > 0
	}
	for _, g := range c.groups {
		if len(g.members) > 1 {
			for _, m := range g.members {
				alone[m.source] = false
			}
		}
	}
	for i := range alone {
		if alone[i] {
			c.report.Warnings = append(c.report.Warnings, fmt.Sprintf("no other adapter has a module of adapter %d, such as %q: if they adapt the same modules, their names differ", i+1, all[i].Layers[0].Module))
		}
	}
}
