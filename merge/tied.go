package merge

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// ends finds the two ends of the base, with the help of what the adapters change.
func (p *Plan) ends(index *naming.Base) naming.Ends {
	c := p.base.Config
	m := naming.Model{
		Shapes: make(map[string][]uint64), Configured: c.Found, ModelType: c.ModelType, Architectures: c.Architectures,
		Tie: c.TieWordEmbeddings, TextTie: c.TextTie, VocabSize: c.VocabSize,
	}
	for _, name := range p.base.Names() {
		ref, _ := p.base.Lookup(name)
		m.Shapes[naming.StripWrappers(name)] = ref.Tensor.Shape
	}
	for i := range p.adapters {
		for _, c := range changesOf(p.adapters[i].Source.Manifest()) {
			if c.isLookedUp {
				m.LookedUp = append(m.LookedUp, index.Nearest(c.name)...)
			} else if m.HeadShape == nil && len(c.shape) == 2 && naming.IsHead(naming.Module(c.name)) {
				m.HeadShape = c.shape
			}
		}
	}
	return m.Ends()
}

// change is a weight that an adapter changes.
type change struct {
	name       string
	shape      []uint64 // of the weight, m×n; nil where the adapter does not tell
	isLookedUp bool     // whether it is a table that tokens are looked up in
}

// changesOf lists the weights that adapters change, by the names that they have there.
func changesOf(m *format.Manifest) (all []change) {
	for i := range m.Adapters {
		for _, l := range m.Adapters[i].Layers {
			c := change{name: l.Module + ".weight", isLookedUp: l.Kind == format.Embedding}
			a, hasA := l.Roles[format.RoleA]
			b, hasB := l.Roles[format.RoleB]
			if hasA && hasB && l.Kind == format.Linear {
				if a, b := m.Tensors[a].Shape, m.Tensors[b].Shape; len(a) == 2 && len(b) == 2 {
					c.shape = []uint64{b[0], a[1]}
				}
			}
			all = append(all, c)
		}
		for _, b := range m.Adapters[i].Beside {
			if b.Action != format.Opaque {
				all = append(all, change{b.Target, m.Tensors[b.Tensor].Shape, b.Action == format.Rows})
			}
		}
	}
	return all
}

// adapterHead is the name that the adapters have for the head that the base lacks, as the base would have it; "" if they change none.
func (p *Plan) adapterHead(index *naming.Base, embedding string) string {
	ref, ok := p.base.Lookup(index.Actual(embedding))
	if !ok {
		return ""
	}
	want := ref.Tensor.Shape
	for i := range p.adapters {
		changes := changesOf(p.adapters[i].Source.Manifest())
		names := make([]string, len(changes))
		for i, c := range changes {
			names[i] = c.name
		}
		mapping, missing, _ := index.Match(names)
		for _, c := range changes {
			isNumbered := naming.IsNumbered(naming.Module(c.name))
			if slices.Contains(missing, c.name) && !isNumbered && !c.isLookedUp && isHeadOf(c.shape, want) {
				return mapping.Renamed(c.name)
			}
		}
	}
	return ""
}

// isHeadOf reports whether a tensor can be the head of an embedding, if the vocabulary has grown in between.
func isHeadOf(head, embedding []uint64) bool {
	return len(head) == 2 && len(embedding) == 2 && head[0] >= embedding[0] && head[1] == embedding[1]
}

// tiedEnds finds the embedding and the head that the base ties, by their names without wrappers; the head has none where its name
// is not known, and no adapter changes it.
func (p *Plan) tiedEnds(index *naming.Base) (embedding, head string, err error) {
	e := p.ends(index)
	if !e.Tied {
		return "", "", fault.New(fault.Mismatch, "the base does not tie its output head to its input embedding").In(p.base.Path).WithHint("leave --tied out")
	}
	if e.Embedding == "" {
		return "", "", fault.New(fault.Unsupported, "no tensor of the base is certain to be the input embedding, by name or by vocab_size of config.json").
			In(p.base.Path).WithHint("untie the base with the tool that made it")
	}
	if e.Head != "" {
		return e.Embedding, e.Head, nil
	}
	if head = p.adapterHead(index, e.Embedding); head == "" {
		head, _ = naming.TiedHead(e.Embedding, p.base.Config.ModelType)
	}
	return e.Embedding, head, nil
}

// alias lets the head stand for the embedding that it is tied to.
func (p *Plan) alias(index *naming.Base) error {
	embedding, head, err := p.tiedEnds(index)
	if err != nil {
		return err
	}
	if index.Has(head) {
		p.mirror = [2]string{index.Actual(embedding), index.Actual(head)}
	}
	p.folded = make(map[bool]bool)
	p.foldedEnds = [2]string{embedding, head}
	if head != "" {
		index.Alias(head, embedding)
	}
	return nil
}

// checkTied refuses to change a tensor that the model uses twice, as input embedding and as output head: the change would
// leak into the other end.
func (r *resolver) checkTied(name string) error {
	if r.plan.options.Tied == Fold {
		return nil
	}
	e := r.ends()
	isEmbedding := name == r.names.Actual(e.Embedding) || e.Embedding == "" && naming.IsInputEmbedding(naming.Module(name))
	isHead := name == r.names.Actual(e.Head)
	switch {
	case !e.Tied, !isEmbedding && !isHead, isEmbedding && r.meansBothEnds(name):
		return nil
	case e.Why == "":
		return r.tiedError(name)
	case isEmbedding:
		r.plan.warn("%q is changed, and the output head may be tied to it, so that it changes too: %s", name, e.Why)
	}
	return nil
}

// ends are the two ends of the base, looked for once.
func (r *resolver) ends() naming.Ends {
	if r.theEnds == nil {
		e := r.plan.ends(r.names)
		r.theEnds = &e
	}
	return *r.theEnds
}

// meansBothEnds reports whether the adapter's change of the embedding is meant for the tied head as well, so that changing the one
// tensor is what it asks for: ensure_weight_tying of PEFT, and trained tokens, which every release of PEFT that knows them (from
// 0.15.0 on) gives to both ends of a tied model.
func (r *resolver) meansBothEnds(embedding string) bool {
	if r.hasTwins || slices.ContainsFunc(r.adapter.Requires, func(q format.Requirement) bool { return q.Feature == format.FeatureWeightTying }) {
		return true
	}
	isRow := false
	for _, b := range r.adapter.Beside {
		actual, ok := r.mapping.Lookup(b.Target)
		switch {
		case b.Action == format.Opaque:
		case ok && actual == embedding:
			isRow = b.Action == format.Rows
			if !isRow {
				return false
			}
		}
	}
	return isRow
}

// isTied reports whether the base ties its head to its embedding, and whether that is certain or only possible.
func (r *resolver) isTied() (tied, certain bool) {
	e := r.ends()
	return e.Tied, e.Why == ""
}

func (r *resolver) tiedError(name string) error {
	return fault.New(fault.Unsupported, "the adapter changes %q, which the base has tied to its other end: input embedding and output head are one tensor, and the change would apply to both", name).
		WithHint("--tied untie makes the head a tensor of its own; --tied fold makes the change to both ends")
}

// checkFolded refuses to fold changes of both ends into one tensor.
func (r *resolver) checkFolded(name string) error {
	isEmbedding, isHead := r.foldedEnd(name)
	if !isEmbedding && !isHead {
		return nil
	}
	if r.plan.folded[!isHead] {
		return fault.New(fault.Unsupported, "the adapter changes both the input embedding and the output head, and --tied fold would make either change to both").
			WithHint("use --tied untie")
	}
	r.plan.folded[isHead] = true
	return nil
}

// foldedEnd tells which end of a folded tie a name of the adapter's means.
func (r *resolver) foldedEnd(name string) (isEmbedding, isHead bool) {
	if r.plan.options.Tied != Fold {
		return false, false
	}
	renamed := r.mapping.Renamed(name)
	return renamed == r.plan.foldedEnds[0], renamed == r.plan.foldedEnds[1]
}

// isFolded reports that a head is saved with the very values that the adapter saves for the embedding, so that one of them is enough where
// both are one tensor.
func (r *resolver) isFolded(b *format.Beside) (bool, error) {
	if _, isHead := r.foldedEnd(b.Target); !isHead {
		return false, nil
	}
	for i := range r.adapter.Beside {
		other := &r.adapter.Beside[i]
		if isEmbedding, _ := r.foldedEnd(other.Target); isEmbedding && other.Action == b.Action && slices.Equal(other.Rows, b.Rows) {
			return sameBlob(r.blob(b.Tensor), r.blob(other.Tensor))
		}
	}
	return false, nil
}
