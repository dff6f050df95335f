package resolve

import (
	"cmp"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// plain is a layer whose factors are those of the formula: a linear layer, an embedding or a
// convolution.
type plain struct {
	*resolver
	layer  *format.Layer
	weight string // in the base; "" until target has found it
}

// target returns the name of the weight that the layer changes.
func (p *plain) target() string {
	if p.weight == "" {
		p.weight = p.weightName(p.layer)
	}
	return p.weight
}

func (p *plain) wants() []string {
	names := []string{p.target()}
	if _, ok := p.layer.Roles[format.RoleBias]; ok {
		names = append(names, naming.BiasOf(names[0]))
	}
	return names
}

func (p *plain) add() error {
	l := p.layer
	x, a, b, err := p.term(l)
	if err != nil {
		return err
	}
	product := x
	if isOutProj(l) {
		product.Scale *= p.outProj()
	}
	name := p.target()
	c, err := p.change(name, false)
	if err != nil {
		return err
	}
	if c.Stacked {
		return StackedAndNot(c.Name)
	}
	transposed, err := p.orientation(c.Shape, a.Tensor().Shape, b.Tensor().Shape)
	if err != nil {
		return err
	}
	left := wholeB(b, l.Rank)
	if p.isInPairs(l) || p.mapping.IsToOwn() || p.base.isGGUF() {
		if left, err = p.inOrder(left); err != nil {
			return err
		}
	}
	c.add(product, left, WholeA(a, l.Rank), transposed)
	if p.has(format.FeaturePiSSA) || p.has(format.FeatureOLoRA) {
		if err := p.addResidual(c, transposed); err != nil {
			return err
		}
	}
	if _, ok := p.magnitude(); ok {
		if err := p.addMagnitude(c, transposed); err != nil {
			return err
		}
	}
	if i, ok := l.Roles[format.RoleBias]; ok {
		return p.addBias(naming.BiasOf(name), x, p.blob(i))
	}
	return nil
}

// magnitude returns the tensor of the layer's magnitudes.
func (p *plain) magnitude() (tensor int, ok bool) {
	if i, ok := p.layer.Roles[format.RoleMagnitude]; ok {
		return i, true
	}
	i, ok := p.layer.Roles[format.RoleInputMagnitude]
	return i, ok
}

// addBias adds the bias of lora_B to that of the base. PEFT adds the bias of an out_proj once, even
// where it adds the weight's update twice.
func (p *plain) addBias(name string, x Term, b Blob) error {
	c, err := p.change(name, false)
	if err != nil {
		return err
	}
	if have, want := b.Tensor().Elements(), c.Elements(); have != want || len(c.Shape) != 1 {
		return fault.New(fault.Mismatch, "lora_B.bias of %q has %s, but the base's bias has shape %d", x.Module, fault.Count(have, "element"), c.Shape)
	}
	x.Rank, x.Left, x.Right = 1, one, WholeA(b, 1)
	c.Terms = append(c.Terms, x)
	return nil
}

// weightName returns the name of the weight that a layer changes: that of its module, or of one
// that several parts of the module share.
func (r *resolver) weightName(l *format.Layer) string {
	if !naming.HasWeight(r.names, l.Module, 2) {
		return r.attentionWeight(l)
	}
	return l.Module + ".weight"
}

// orientation decides whether the base stores the weight of a layer transposed. The shape tells;
// for a square weight, orientSquare decides.
func (p *plain) orientation(shape, a, b []uint64) (transposed bool, err error) {
	l := p.layer
	if l.Kind == format.Conv {
		return false, p.checkConvolution(shape, a, b)
	}
	n, m := a[1], b[0]
	if l.Kind == format.Embedding {
		if len(shape) == 2 && shape[0] == n && shape[1] == m {
			return true, nil
		}
		return false, fault.New(fault.Mismatch, "the embedding %q: A has %d columns and B %d rows, but the base's weight has shape %d", l.Module, n, m, shape).
			WithHint("%s", p.wrongBase())
	}
	if len(shape) > 2 && isOne(shape[2:]) && shape[0] == m && shape[1] == n {
		return false, nil // a convolution of kernel 1 is a linear layer
	}
	asLinear := len(shape) == 2 && shape[0] == m && shape[1] == n
	transposed = len(shape) == 2 && shape[0] == n && shape[1] == m && !p.base.isGGUF()
	switch {
	case asLinear && transposed:
		return p.orientSquare(l)
	case asLinear || transposed:
		p.compareFlag(l, transposed)
		return transposed, nil
	}
	if len(shape) > 2 {
		return false, fault.New(fault.Mismatch, "%q: the base's weight has shape %d, but the factors are those of a linear layer %d×%d", l.Module, shape, m, n).
			WithHint("%s", p.wrongBase())
	}
	return false, fault.New(fault.Mismatch, "%q: B·A is %d×%d, but the base's weight has shape %d", l.Module, m, n, shape).WithHint("%s", p.wrongBase())
}

// compareFlag notes a layer whose orientation in the base contradicts fan_in_fan_out.
func (r *resolver) compareFlag(l *format.Layer, transposed bool) {
	if r.model.Orientation != format.OrientationUnknown && transposed != (r.model.Orientation == format.NxM) {
		r.notes.of(l.Module, "fan_in_fan_out of the adapter's configuration contradicts the base, which decides")
	}
}

func (r *resolver) countVotes() votes {
	v := make(votes)
	tensors := r.manifest.Tensors
	for i := range r.model.Layers {
		l := &r.model.Layers[i]
		if l.Kind != format.Linear {
			continue
		}
		shape := r.tensor(l.Module + ".weight").Shape
		if len(shape) != 2 {
			continue
		}
		n, m := tensors[l.Roles[format.RoleA]].Shape[1], tensors[l.Roles[format.RoleB]].Shape[0]
		vote := 0
		switch {
		case n == m:
		case shape[0] == m && shape[1] == n:
			vote = -1
		case shape[0] == n && shape[1] == m:
			vote = 1
		}
		leaf := naming.Leaf(l.Module)
		v[leaf] += vote
		if naming.IsConv1DName(leaf) {
			v[""] += vote
		}
	}
	return v
}

// orientSquare decides whether the base stores a square weight transposed: by its model type, and
// by how it stores the other weights of modules with the same name. The adapter's orientation does
// not decide: producers often get it wrong, and the content id does not cover it. orientSquare
// refuses a layer if nothing else decides.
func (r *resolver) orientSquare(l *format.Layer) (bool, error) {
	if r.votes == nil {
		r.votes = r.countVotes()
	}
	leaf := naming.Leaf(l.Module)
	modelType := r.base.Config.ModelType
	var transposed bool
	switch {
	case r.votes[leaf] != 0:
		transposed = r.votes[leaf] > 0
	case modelType != "":
		transposed = naming.IsConv1DModel(modelType) && naming.IsConv1DName(leaf)
	case r.votes[""] != 0 && naming.IsConv1DName(leaf):
		transposed = r.votes[""] > 0
	case r.reading.LinearInput > 0 && naming.IsConv1DName(leaf):
		transposed = r.reading.LinearInput == 1
	case naming.IsConv1DName(leaf) && r.model.Orientation == format.NxM:
		return false, fault.New(fault.Unsupported, "the weight of %q is square, and only fan_in_fan_out of the adapter's configuration tells whether the base stores it transposed: the base has no config.json, and no other weight shows it", l.Module).
			WithHint("put the model's config.json beside its weights, or set Options.LinearInput, to 1 if lora_A reads the first dimension of the weight (Conv1D of GPT-2), to 2 if it reads the second (torch.nn.Linear)")
	default:
		// torch.nn.Linear, which every other model uses.
	}
	r.compareFlag(l, transposed)
	return transposed, nil
}

// checkConvolution checks that the factors of a convolution fit its weight. A, r×in×k…, and B,
// out×r×1…, are themselves convolutions, one after the other: their product, B out×r times A
// r×(in·k…), has the elements of the weight in its order.
func (p *plain) checkConvolution(w, a, b []uint64) error {
	l := p.layer
	if len(a) == len(b) && len(a) >= 3 && len(w) >= 2 {
		rank := uint64(l.Rank)
		fits := a[0] == rank && b[0] == w[0] && b[1] == rank && a[1] == w[1] && isOne(b[2:])
		isLinear := len(w) == 2 && isOne(a[2:]) // saved as convolutions of kernel 1
		if fits && (isLinear || slices.Equal(a[2:], w[2:])) {
			return nil
		}
	}
	if d, ok := naming.DiagnoseConvolution(l.Module, w, a, b); ok {
		return fault.New(fault.Mismatch, "%s", d.Why).WithHint("%s", cmp.Or(d.Hint, p.wrongBase()))
	}
	return fault.New(fault.Mismatch, "the convolution %q: lora_A has shape %d and lora_B %d, but the base's weight has shape %d", l.Module, a, b, w).
		WithHint("%s", p.wrongBase())
}

// isOne reports whether a kernel has one element.
func isOne(kernel []uint64) bool {
	return !slices.ContainsFunc(kernel, func(k uint64) bool { return k != 1 })
}

// isOutProj reports whether a layer is the out_proj of an nn.MultiheadAttention.
func isOutProj(l *format.Layer) bool {
	_, is := naming.CutWrapper(l.Module)
	return is
}

// record adds a change to the sheet.
func (s *sheet) record(c *Change) { s.changes[c.Name], s.made = c, append(s.made, c) }

// change returns the change of the base's tensor for a name of the adapter, and makes it at first
// use. A tensor that is only copied may be stored in any way.
func (r *resolver) change(name string, copied bool) (*Change, error) {
	actual, _ := r.mapping.Lookup(name) // resolve has found every name
	if r.fold != nil {
		if err := (tied{r}).checkFolded(name); err != nil {
			return nil, err
		}
	}
	if c := r.changes[actual]; c != nil {
		return c, nil
	}
	t := r.base.Tensors[actual]
	if !copied {
		if err := r.base.checkStorage(actual, t.DType); err != nil {
			return nil, err
		}
	}
	module := naming.Module(actual)
	if r.fold == nil && (r.looksUp || naming.MayBeEnd(module)) && !r.isImage() {
		if err := (tied{r}).check(actual); err != nil {
			return nil, err
		}
	}
	c := &Change{Name: actual, Module: module, Tensor: t, NBands: 1}
	r.record(c)
	return c, nil
}
