package resolve

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/delta"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Resolve pairs every tensor of the adapters of one merge with the tensor of the base that it
// changes. It fails if it cannot use each tensor exactly once. The changes are in the order of
// their names; texts are facts for the user. It reads values only of adapters that save one tensor
// twice, to compare the two.
func Resolve(b *Base, adapters *Checked) (changes []*Change, texts []string, err error) {
	s, err := newSheet(b, adapters)
	if err != nil {
		return nil, nil, err
	}
	for i := range s.adapters {
		r, err := s.resolver(i)
		if err == nil {
			err = r.resolve()
		}
		if err != nil {
			return nil, nil, fault.InFile(err, s.adapters[i].Name)
		}
	}
	if s.fold != nil {
		s.mirror()
	}
	slices.SortFunc(s.made, func(a, b *Change) int { return strings.Compare(a.Name, b.Name) })
	for _, c := range s.made {
		if err := c.check(); err != nil {
			return nil, nil, err
		}
	}
	return s.made, s.notes.list(), nil
}

func newSheet(b *Base, adapters *Checked) (*sheet, error) {
	n := 0
	for i := range adapters.adapters {
		n += len(adapters.adapters[i].model.Layers)
	}
	s := &sheet{
		Checked: adapters, base: b, names: naming.IndexOf(b.Names(), b.Config.Architecture),
		changes: make(map[string]*Change, n), notes: new(notes),
		looksUp: slices.ContainsFunc(adapters.adapters, looksUp),
	}
	if s.reading.Tied == Fold && len(s.adapters) > 0 {
		return s, s.foldEnds()
	}
	return s, nil
}

// resolver begins adapter i: it finds the forms of its parts, and does not yet look for the base's
// tensors.
func (s *sheet) resolver(i int) (*resolver, error) {
	r := &resolver{sheet: s, given: s.adapters[i], folded: make(map[bool]bool)}
	for _, note := range r.manifest.Notes {
		s.notes.add("%s", note)
	}
	if len(r.left) > 0 {
		s.notes.add("left out, of components that Options.Only does not name: %s", fault.List(r.left, maxNamed))
	}
	return r, r.form()
}

// form finds the forms of the layers and of the tensors beside them.
func (r *resolver) form() error {
	if len(r.model.Beside) > 1 {
		if err := (twins{r}).drop(); err != nil {
			return err
		}
	}
	stacked := false
	for i := range r.model.Layers {
		l := &r.model.Layers[i]
		stacked = stacked || l.Kind.IsExpert()
		if f := r.formOf(l); f != nil {
			r.forms = append(r.forms, f)
		}
	}
	if stacked {
		if err := r.groupExperts(); err != nil {
			return err
		}
	}
	for i := range r.model.Beside {
		if f := r.formBeside(&r.model.Beside[i]); f != nil {
			r.forms = append(r.forms, f)
		}
	}
	if r.has(format.FeaturePiSSA) || r.has(format.FeatureOLoRA) {
		return r.checkResiduals()
	}
	return nil
}

// formOf returns the form of a layer, or nil if the layer shares its form with others.
func (r *resolver) formOf(l *format.Layer) form {
	switch {
	case delta.IsMethod(l):
		return newMethod(r, l)
	case l.Kind.IsExpert():
		return nil
	case l.Kind == format.Other && r.isPerExpert(l):
		return newPerExpert(r, l)
	case l.Kind == format.Other:
		return &compact{resolver: r, layer: l}
	case l.Kind == format.Linear:
		if parameter, expert, part, parts, ok := naming.ExpertPart(l.Module); ok {
			if f := (gathered{r, l, parameter, expert, part, parts}).find(); f != nil {
				return f
			}
		}
		if at := naming.Divide(r.names, l.Module, r.base.Config.Widths); at != nil {
			return &divided{r, l, at}
		}
	}
	return &plain{resolver: r, layer: l}
}

// resolve adds the adapter's changes to the sheet.
func (r *resolver) resolve() error {
	wanted := r.wanted(func(form) bool { return true })
	if len(wanted) == 0 {
		return fault.New(fault.Corrupt, "the adapter changes nothing: it has no layer and no tensor to put in place")
	}
	if err := r.pair(wanted); err != nil {
		return err
	}
	if r.has(format.FeatureRotaryByModel) {
		if err := decideRows(r); err != nil {
			return err
		}
	}
	var errs []error
	for _, f := range r.forms {
		errs = append(errs, f.add())
	}
	return first(errs)
}

// pair finds the tensors of the base that the wanted names stand for, and changes the forms of
// layers that the base divides.
func (r *resolver) pair(wanted []string) error {
	if len(r.reading.Only) > 0 { // only a component tells which layers it has
		ok, err := r.spread()
		if err == nil && !ok {
			err = fault.New(fault.Unsupported, "Options.Only is for adapters of image and video models, whose layers are linear or convolutions; this is none, or the base has no component").
				WithHint("leave Options.Only out")
		}
		return err
	}
	mapping, missing, ambiguous := r.names.Match(wanted)
	r.mapping = mapping
	switch {
	case ambiguous != nil:
		return fault.New(fault.Mismatch, "the adapter's module names fit the base in several ways: %s", strings.Join(ambiguous, "; ")).
			WithHint("rename the modules of the adapter to those of the base")
	case missing != nil:
		ok, err := r.spread()
		if err != nil {
			return err
		}
		if !ok {
			return r.explainMissing(wanted, missing)
		}
	}
	if r.mapping.IsToOwn() || r.base.isGGUF() {
		if err := checkQueries(r); err != nil {
			return err
		}
	}
	if d := r.mapping.Describe(); d != "as they are" && !r.isImage() {
		r.notes.add("the adapter's module names are used %s", d)
	}
	noteWrapped(r, wanted)
	return nil
}

// first returns the first of several errors. Its message tells how many others there are, and
// quotes the next one.
func first(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	var f *fault.Error
	if len(errs) > 1 && errors.As(errs[0], &f) {
		f.Msg += fmt.Sprintf("; %d more, the next one: %v", len(errs)-1, errs[1])
	}
	if len(errs) == 0 {
		return nil
	}
	return errs[0]
}

// check refuses changes of one tensor that cannot be combined.
func (c *Change) check() error {
	if c.Rows != nil && (c.Replace != nil && c.Replace.Source != c.Rows.Source || len(c.Terms) > 0) {
		return fault.New(fault.Unsupported, "%q gets trained token rows and another change as well, and their order is not defined", c.Name)
	}
	if c.Replace != nil && len(c.Terms) > 0 && c.Replace.Tensor().DType != c.DType {
		return fault.New(fault.Unsupported, "%q is replaced by a tensor in %v and updated as well, while the base stores %v",
			c.Name, c.Replace.Tensor().DType, c.DType)
	}
	if err := c.checkOverlap(); err != nil {
		return err
	}
	if len(c.Deltas) > 0 {
		if err := c.checkDeltas(); err != nil {
			return err
		}
	}
	if c.HasResidual() {
		return c.checkResidual()
	}
	if c.DoRA != nil {
		return c.checkMagnitude()
	}
	return nil
}

// checkOverlap refuses two layers of one adapter that change the same elements: an adapter has one
// update for each.
func (c *Change) checkOverlap() error {
	if len(c.Terms)+len(c.Deltas) < 2 {
		return nil
	}
	type place struct{ adapter, band int }
	type box struct {
		module     string
		rows, cols extent
	}
	boxes := make(map[place][]box)
	enter := func(at place, own box) error {
		others := boxes[at]
		if n := len(others); n > 0 && others[n-1].module == own.module {
			others[n-1].rows = others[n-1].rows.hull(own.rows)
			others[n-1].cols = others[n-1].cols.hull(own.cols)
			return nil
		}
		for _, b := range others {
			if b.rows.meets(own.rows) && b.cols.meets(own.cols) && b.module != own.module {
				return fault.New(fault.Mismatch, "two layers of one adapter change the same elements of %q: %q and %q", c.Name, b.module, own.module).
					WithHint("the adapter names one module in two ways; remove one of the two layers")
			}
		}
		boxes[at] = append(others, own)
		return nil
	}
	for i := range c.Terms {
		x := &c.Terms[i]
		if x.Residual != NoResidual {
			continue
		}
		if err := enter(place{x.Adapter, x.Band}, box{x.Module, x.Left.extent(), x.Right.extent()}); err != nil {
			return err
		}
	}
	_, nCols := c.Matrix()
	for _, d := range c.Deltas {
		if err := enter(place{d.Adapter, 0}, box{d.Module, extent{first: d.At, end: d.At + d.Count}, extent{end: int(nCols)}}); err != nil {
			return err
		}
	}
	return nil
}

// extent says which rows, or columns, of a weight a factor covers: first to the one before end, of
// these the ones of runs if their step is not 0.
type extent struct {
	first, end int
	runs       Runs
}

func (f Factor) extent() extent {
	between := f.Covers()
	e := extent{first: between[0], end: between[1]}
	if !f.Runs.Takes {
		e.runs = f.Runs
	}
	return e
}

func (e extent) meets(other extent) bool {
	return e.first < other.end && other.first < e.end && (e.first != other.first || e.runs.meets(other.runs))
}

// hull returns an extent that contains two.
func (e extent) hull(other extent) extent {
	h := extent{first: min(e.first, other.first), end: max(e.end, other.end)}
	if e == other {
		h.runs = e.runs
	}
	return h
}

// Check refuses adapters that no base can take.
func Check(adapters []Adapter, reading Reading) (*Checked, error) {
	c := &Checked{reading: reading}
	for i, a := range adapters {
		g, err := newGiven(a, i)
		if err == nil {
			err = g.keepOnly(reading.Only)
		}
		if err == nil {
			err = g.checkFeatures(reading)
		}
		if err != nil {
			return nil, fault.InFile(err, a.Name)
		}
		c.adapters = append(c.adapters, *g)
	}
	return c, nil
}

// checkFeatures refuses an adapter that requires a feature beyond this version.
func (g *given) checkFeatures(reading Reading) error {
	model := g.model
	if reading.RecomputeResidual {
		model = withoutResiduals(model)
	}
	if why, hint := Refusals(model, g.manifest.Tensors); len(why) > 0 {
		return fault.New(fault.Unsupported, "the adapter cannot be merged: %s", strings.Join(why, "; ")).WithHint("%s", hint)
	}
	return nil
}

// withoutResiduals returns the adapter without the requirements that recomputing the residual
// meets.
func withoutResiduals(a *format.Adapter) *format.Adapter {
	plain := *a
	plain.Requires = slices.DeleteFunc(slices.Clone(a.Requires), func(q format.Requirement) bool { return verdictOf(q.Feature) == NeedsOption })
	return &plain
}

// Refusals explains why this version cannot merge the adapter: one entry per feature, none if it
// can. The hint belongs to the first entry.
func Refusals(a *format.Adapter, tensors []format.Tensor) (why []string, hint string) {
	where := make(map[format.Feature][]string)
	var features []format.Feature
	for _, r := range a.Requires {
		if verdictOf(r.Feature) == Applied {
			continue
		}
		if where[r.Feature] == nil {
			features = append(features, r.Feature)
		}
		where[r.Feature] = append(where[r.Feature], r.Where)
	}
	slices.SortStableFunc(features, func(a, b format.Feature) int { return rank(a) - rank(b) })
	for _, f := range features {
		text, remedy := explain(f, where[f])
		why = append(why, text)
		if hint == "" {
			hint = remedy
		}
	}
	if len(why) > 0 {
		return why, hint // they explain roles that are missing or unknown
	}
	if why, hint = unsaidProjections(a); len(why) > 0 {
		return why, hint
	}
	if why, hint = disagreements(a), ""; len(why) > 0 {
		hint = "the file was not saved whole, or its writer did not announce all of it; save the adapter again"
	} else if why = notFloats(a, tensors); len(why) > 0 {
		hint = "save the adapter again in F32, F16 or BF16"
	}
	return why, hint
}

// unsaidProjections names the requirements that do not say which projections a MergedLinear adapts.
func unsaidProjections(a *format.Adapter) (why []string, hint string) {
	for _, q := range a.Requires {
		if q.Feature == format.FeatureMergedLinear && len(q.Projections()) == 0 {
			why = append(why, "it has a MergedLinear, but the file does not say which of its projections it "+
				"adapts (Options.EnableLoRA): "+q.Where)
		}
	}
	return why, "set Options.EnableLoRA=true,false,true for q and v of q, k and v, or as the training did; " +
		"a .lora file must be converted again from its source"
}

// rank sorts features that explain others to the front: another method of PEFT explains unknown
// tensors.
func rank(feature format.Feature) int {
	switch feature {
	case format.FeaturePEFTType:
		return 0
	case format.FeatureUnknownTensor, format.FeatureMissingFactor, format.FeatureRankMismatch, format.FeatureFactorShape:
		return 2
	}
	return 1
}

// extras are the roles beside A and B that a layer can have, each with the feature that announces
// it (spec/FORMAT.md, R74 to R76).
var extras = []struct {
	role    format.Role
	feature format.Feature
	name    string
	whole   bool // announced for the whole adapter, it is due in every layer
}{
	{format.RoleMagnitude, format.FeatureDoRA, "magnitudes of DoRA (lora_magnitude_vector)", true},
	{format.RoleBias, format.FeatureLoRABias, "a bias of lora_B", false},
	{format.RoleInputMagnitude, format.FeatureInputMagnitude, "magnitudes of DoRA per input (dora_scale)", false},
	{format.RoleCore, format.FeatureTucker, "a core (lora_mid)", false},
}

// disagreements lists the contradictions between the roles of an adapter's layers and its
// requirements. A reader that ignored one of the two would merge another adapter: plain LoRA in
// place of DoRA, for one.
func disagreements(a *format.Adapter) (why []string) {
	hasExtras := slices.ContainsFunc(a.Layers, func(l format.Layer) bool { return !hasOnlyFactors(&l) })
	for _, x := range extras {
		var lacking, unannounced []string
		announced, whole := make(map[string]bool), false
		for _, q := range a.Requires {
			if q.Feature == x.feature {
				announced[q.Where] = true
				whole = whole || q.Where == "" || q.Where == peftDoRA
			}
		}
		if a.Method == format.MethodDoRA && x.feature == format.FeatureDoRA && len(announced) == 0 {
			why = append(why, "its method is dora, but it announces no magnitudes of DoRA")
		}
		if !hasExtras && len(announced) == 0 {
			continue
		}
		for i := range a.Layers {
			l := &a.Layers[i]
			_, has := l.Roles[x.role]
			isDue := announced[l.Module] || whole && x.whole && isPlainKind(l.Kind)
			switch {
			case isDue && !has:
				lacking = append(lacking, l.Module)
			case has && !whole && !announced[l.Module]:
				unannounced = append(unannounced, l.Module)
			}
			delete(announced, l.Module)
		}
		delete(announced, "")
		delete(announced, peftDoRA)
		for module := range announced {
			lacking = append(lacking, module)
		}
		slices.Sort(lacking)
		if lacking != nil {
			why = append(why, fmt.Sprintf("it announces %s for layers that have none: %s", x.name, fault.List(lacking, 3)))
		}
		if unannounced != nil {
			why = append(why, fmt.Sprintf("layers have %s, but it does not require %q: %s", x.name, x.feature, fault.List(unannounced, 3)))
		}
	}
	if slices.ContainsFunc(a.Requires, func(q format.Requirement) bool { return q.Feature == format.FeatureRotaryPairs }) {
		why = append(why, pairsElsewhere(a)...)
	}
	return slices.Concat(why, unknownRoles(a), unknownKinds(a), surplus(a))
}

// hasOnlyFactors reports whether a layer has A and B and nothing else, as nearly all have.
func hasOnlyFactors(l *format.Layer) bool {
	_, hasA := l.Roles[format.RoleA]
	_, hasB := l.Roles[format.RoleB]
	return hasA && hasB && len(l.Roles) == 2
}

// knowsRole reports whether a role has a meaning in a layer of this kind. One that changes what
// another kind does would be left out silently (R76).
func knowsRole(l *format.Layer, role format.Role) bool {
	isScaling := l.Kind == format.OutputScaling || l.Kind == format.InputScaling
	switch role {
	case format.RoleA, format.RoleB, format.RoleBias, format.RoleAlpha:
		return true
	case format.RoleMagnitude:
		return !isScaling
	case format.RoleInputMagnitude:
		return !isScaling && l.Kind != format.Embedding
	case format.RoleCore:
		return l.Kind == format.Conv
	case format.RoleAxis:
		return isScaling
	}
	return delta.IsMethod(l) && delta.HasRole(role)
}

// unknownRoles names the tensors of layers that this version does not know.
func unknownRoles(a *format.Adapter) []string {
	var unknown []string
	for i := range a.Layers {
		if hasOnlyFactors(&a.Layers[i]) {
			continue
		}
		for role := range a.Layers[i].Roles {
			if !knowsRole(&a.Layers[i], role) {
				unknown = append(unknown, fmt.Sprintf("%s (%s)", a.Layers[i].Module, role))
			}
		}
	}
	if unknown == nil {
		return nil
	}
	slices.Sort(unknown)
	return []string{"layers have tensors with unknown roles: " + fault.List(unknown, 3)}
}

// notFloats names the factors whose values are no plain floats.
func notFloats(a *format.Adapter, tensors []format.Tensor) []string {
	var names []string
	for i := range a.Layers {
		for role, t := range a.Layers[i].Roles {
			if d := tensors[t].DType; role != format.RoleAlpha && role != format.RoleAxis && !d.IsFloat() {
				names = append(names, fmt.Sprintf("%s (%v)", tensors[t].Name, d))
			}
		}
	}
	if names == nil {
		return nil
	}
	slices.Sort(names)
	return []string{"factors are stored in another dtype than F64, F32, F16 and BF16: " + fault.List(names, 3)}
}

// surplus names the layers with more tensors than A and B, of kinds whose formula has only these.
func surplus(a *format.Adapter) []string {
	isDoRA := slices.ContainsFunc(a.Requires, func(q format.Requirement) bool {
		return q.Feature == format.FeatureDoRA && (q.Where == "" || q.Where == peftDoRA)
	})
	var layers []string
	for i := range a.Layers {
		if l := &a.Layers[i]; !isPlainKind(l.Kind) && !delta.IsMethod(l) && (isDoRA || nOperands(l) > 2) {
			layers = append(layers, l.Module)
		}
	}
	if layers == nil {
		return nil
	}
	return []string{"layers of experts, or with compact factors, have DoRA or a bias beside lora_A and lora_B: " +
		fault.List(layers, 3)}
}

// unknownKinds names the layers of kind other whose factors no requirement explains.
func unknownKinds(a *format.Adapter) []string {
	explains := func(q format.Requirement) bool {
		switch q.Feature {
		case format.FeatureBDLoRA, format.FeatureQALoRA, format.FeatureMergedLinear, format.FeatureExpertFactors:
			return true
		}
		return false
	}
	if slices.ContainsFunc(a.Requires, explains) {
		return nil
	}
	var unknown []string
	for i := range a.Layers {
		if a.Layers[i].Kind == format.Other {
			unknown = append(unknown, a.Layers[i].Module)
		}
	}
	if unknown == nil {
		return nil
	}
	return []string{"layers are of an unknown kind: " + fault.List(unknown, 3)}
}

// isPlainKind reports whether layers of a kind have magnitudes in DoRA.
func isPlainKind(k format.Kind) bool {
	return k == format.Linear || k == format.Embedding || k == format.Conv
}
