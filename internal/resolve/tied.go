package resolve

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// ends finds the two ends of the base once, with the help of the adapters' changes.
func (s *sheet) ends() naming.Ends {
	if s.ties != nil {
		return *s.ties
	}
	m := s.base.Config.Ties()
	m.Shapes = naming.Shapes(s.names, func(name string) []uint64 { return s.base.Tensors[name].Shape })
	for i := range s.adapters {
		for _, w := range weightsOf(&s.adapters[i]) {
			if w.isLookedUp {
				m.LookedUp = append(m.LookedUp, s.names.Nearest(w.name)...)
			} else if m.HeadShape == nil && len(w.shape) == 2 && naming.IsHead(naming.Module(w.name)) {
				m.HeadShape = w.shape
			}
		}
	}
	e := m.Ends()
	s.ties = &e
	return e
}

// weight is a weight that an adapter changes.
type weight struct {
	name       string
	shape      []uint64 // m×n; nil where the adapter does not tell
	isLookedUp bool     // whether it is a table that tokens are looked up in
}

// weightsOf lists the weights that an adapter changes, by the names that it has for them.
func weightsOf(g *given) (all []weight) {
	tensors := g.manifest.Tensors
	for _, l := range g.model.Layers {
		w := weight{name: l.Module + ".weight", isLookedUp: l.Kind == format.Embedding}
		a, hasA := l.Roles[format.RoleA]
		b, hasB := l.Roles[format.RoleB]
		if hasA && hasB && l.Kind == format.Linear {
			if a, b := tensors[a].Shape, tensors[b].Shape; len(a) == 2 && len(b) == 2 {
				w.shape = []uint64{b[0], a[1]}
			}
		}
		all = append(all, w)
	}
	for _, b := range g.model.Beside {
		if b.Action != format.Opaque {
			all = append(all, weight{b.Target, tensors[b.Tensor].Shape, b.Action == format.Rows})
		}
	}
	return all
}

// adapterHead returns the name that the base would give the head that it lacks, taken from the
// names of the adapters; "" if they change none.
func (s *sheet) adapterHead(embedding string) string {
	t, ok := s.base.Tensors[s.names.Actual(embedding)]
	if !ok {
		return ""
	}
	for i := range s.adapters {
		weights := weightsOf(&s.adapters[i])
		names := make([]string, len(weights))
		for i, w := range weights {
			names[i] = w.name
		}
		mapping := s.names.Best(names)
		for _, w := range weights {
			module := naming.Module(w.name)
			isHead := !naming.IsNumbered(module) && !naming.IsInputEmbedding(module) && !w.isLookedUp
			if _, found := mapping.Lookup(w.name); !found && isHead && isHeadOf(w.shape, t.Shape) {
				return mapping.Renamed(w.name)
			}
		}
	}
	return ""
}

// isHeadOf reports whether a tensor can be the head of an embedding, perhaps with a vocabulary that
// has grown since.
func isHeadOf(head, embedding []uint64) bool {
	return len(head) == 2 && len(embedding) == 2 && head[0] >= embedding[0] && head[1] == embedding[1]
}

// tiedEnds finds the embedding and the head that the base ties, by their names without wrappers.
// head is "" if its name is not known and no adapter changes it.
func (s *sheet) tiedEnds() (embedding, head string, err error) {
	e := s.ends()
	if !e.Tied {
		return "", "", fault.New(fault.Mismatch, "the base does not tie its output head to its input embedding").In(s.base.Path).WithHint("leave Options.Tied out")
	}
	if e.Embedding == "" {
		return "", "", fault.New(fault.Mismatch, "cannot tell which tensor of the base is the input embedding: neither a name nor vocab_size of config.json decides").
			In(s.base.Path).WithHint("untie the base with the tool that made it")
	}
	if e.Head != "" {
		return e.Embedding, e.Head, nil
	}
	if head = s.adapterHead(e.Embedding); head == "" {
		head, _ = naming.TiedHead(e.Embedding, s.base.Config.ModelType)
	}
	return e.Embedding, head, nil
}

// tied checks an adapter's changes of the base's two ends if these are one tensor.
type tied struct{ *resolver }

// check refuses to change a tensor that the model uses twice, as input embedding and as output
// head: the change would leak into the other end.
func (r tied) check(name string) error {
	e := r.ends()
	isEmbedding := name == r.names.Actual(e.Embedding) || e.Embedding == "" && naming.IsInputEmbedding(naming.Module(name))
	isHead := name == r.names.Actual(e.Head)
	switch {
	case !e.Tied, !isEmbedding && !isHead, isEmbedding && r.meansBothEnds(name):
		return nil
	case e.Why == "":
		return tiedError(name)
	case isEmbedding:
		r.notes.add("the adapter changes %q, and the output head may be tied to it and change as well: %s", name, e.Why)
	}
	return nil
}

// meansBothEnds reports whether the adapter's change of the embedding is meant for the tied head as
// well. ensure_weight_tying of PEFT says so, and every release of PEFT that trains single tokens
// (from 0.15.0 on) gives them to both ends of a tied model.
func (r tied) meansBothEnds(embedding string) bool {
	if r.hasTwins || r.has(format.FeatureWeightTying) {
		return true
	}
	isRow := false
	for _, b := range r.model.Beside {
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

func tiedError(name string) error {
	return fault.New(fault.Unsupported, "the adapter changes %q, which the base has tied to its other end: input embedding and output head are one tensor, and the change would apply to both", name).
		WithHint("Options.Tied=untie makes the head a tensor of its own; Options.Tied=fold makes the change to both ends")
}

// foldEnds makes the head's name mean the embedding that the head is tied to.
func (s *sheet) foldEnds() error {
	embedding, head, err := s.tiedEnds()
	if err != nil {
		return err
	}
	s.fold = &fold{embedding: embedding, head: head}
	if s.names.Has(head) {
		s.fold.copies = [2]string{s.names.Actual(embedding), s.names.Actual(head)}
	}
	if head != "" {
		s.names.Alias(head, embedding)
	}
	return nil
}

// foldedEnd reports which end of a folded tie a name of the adapter means.
func (r tied) foldedEnd(name string) (isEmbedding, isHead bool) {
	renamed := r.mapping.Renamed(name)
	return renamed == r.fold.embedding, renamed == r.fold.head
}

// checkFolded refuses to fold changes of both ends into one tensor.
func (r tied) checkFolded(name string) error {
	isEmbedding, isHead := r.foldedEnd(name)
	if !isEmbedding && !isHead {
		return nil
	}
	if r.folded[!isHead] {
		return fault.New(fault.Unsupported, "the adapter changes both the input embedding and the output head, and Options.Tied=fold would make either change to both").
			WithHint("set Options.Tied=untie")
	}
	r.folded[isHead] = true
	return nil
}

// isFolded reports whether the adapter saves a head with the values that it saves for the
// embedding. Where both are one tensor, one of the two is enough.
func (r tied) isFolded(b *format.Beside) (bool, error) {
	if _, isHead := r.foldedEnd(b.Target); !isHead {
		return false, nil
	}
	for i := range r.model.Beside {
		other := &r.model.Beside[i]
		if isEmbedding, _ := r.foldedEnd(other.Target); isEmbedding && other.Action == b.Action && slices.Equal(other.Rows, b.Rows) {
			return sameBlob(r.blob(b.Tensor), r.blob(other.Tensor))
		}
	}
	return false, nil
}

// mirror repeats the change of a folded tensor in the head if the base stores it a second time.
func (s *sheet) mirror() {
	if s.fold.copies[1] == "" {
		return
	}
	c, to := s.changes[s.fold.copies[0]], s.fold.copies[1]
	if c == nil {
		return
	}
	other := s.changes[to]
	if other == nil {
		other = &Change{Name: to, Module: naming.Module(to), Tensor: s.base.Tensors[to], NBands: 1}
		s.record(other)
	}
	other.Terms, other.DoRA, other.Replace, other.Rows = c.Terms, c.DoRA, c.Replace, c.Rows
}

// isVocabulary reports whether a tensor is of an embedding of tokens or of a head over them, which
// grow and are tied.
func isVocabulary(name string) bool {
	module := naming.Module(name)
	return naming.IsInputEmbedding(module) || naming.IsHead(module)
}
