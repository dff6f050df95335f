package merge

import (
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/safetensors"
)

// An adapter for a task saves the head of the task whole, and the checkpoint that its configuration names has none, or one for
// another number of classes: BertForSequenceClassification makes the head at random when it loads bert-base-uncased. This
// file gives the base such tensors, as reshape does for a vocabulary: the checkpoint then reads as if it had been written so.

// saved is a tensor that an adapter saves whole, and that the base lacks or has in another shape.
type saved struct {
	target string // in the adapter
	name   string // in the output
	tensor *format.Tensor
	was    []uint64 // the shape that the base has; nil where it lacks the tensor
}

// pairing is how an adapter's tensors pair with those of the base when its updates are paired alone, and what is left over.
type pairing struct {
	mapping naming.Mapping
	left    []saved
}

// pairUpdates pairs the tensors that an adapter updates, and finds what it saves whole and the base has not. ok is false where
// the updates do not pair, or something is left over that no flag can add: then the base is wrong, or named otherwise.
func (r *resolver) pairUpdates() (p pairing, ok bool) {
	updates := r.wanted(true)
	if updates == nil {
		updates = r.wanted(false)
	}
	mapping, missing, ambiguous := r.names.Match(updates)
	if ambiguous != nil || len(missing) == len(updates) || missing != nil && len(r.adapter.Layers) > 0 {
		return p, false
	}
	p.mapping = mapping
	for i := range r.adapter.Beside {
		b := &r.adapter.Beside[i]
		if b.Action != format.Replace {
			continue
		}
		tensor := r.blob(b.Tensor).tensor()
		actual, found := mapping.Lookup(b.Target)
		if !found && r.names.Has(b.Target) {
			actual, found = r.names.Actual(b.Target), true // a head beside a trunk without a prefix
		}
		if found {
			ref, _ := r.plan.base.Lookup(actual)
			if was := ref.Tensor.Shape; !slices.Equal(tensor.Shape, was) && !isVocabulary(b.Target) {
				p.left = append(p.left, saved{b.Target, actual, tensor, was})
			}
			continue
		}
		if !r.isAddable(b, tensor, mapping) {
			return p, false
		}
		p.left = append(p.left, saved{b.Target, newName(b.Target, mapping), tensor, nil})
	}
	return p, true
}

// isVocabulary reports whether a tensor is of an embedding of tokens or of a head over them, which grow and are tied.
func isVocabulary(name string) bool {
	module := naming.Module(name)
	return naming.IsInputEmbedding(module) || naming.IsHead(module)
}

// isAddable reports whether the base may get a tensor that it lacks: not an embedding, a head that is tied to one, or a single
// parameter of a module that is there and saved in part, such as the bias of a layer that has none.
func (r *resolver) isAddable(b *format.Beside, t *format.Tensor, m naming.Mapping) bool {
	module := naming.Module(b.Target)
	tied, _ := r.isTied()
	switch {
	case naming.IsInputEmbedding(module), naming.IsHead(module) && tied, !t.DType.IsFloat():
		return false
	}
	weight := module + ".weight"
	_, hasWeight := m.Lookup(weight)
	savesWeight := slices.ContainsFunc(r.adapter.Beside, func(o format.Beside) bool { return o.Target == weight })
	return !hasWeight || savesWeight
}

// newName is the name in the output of a tensor that the base lacks. Where the base's names lack the prefix of the model that
// the adapter was trained in, they get it, and the tensor has the adapter's name.
func newName(target string, m naming.Mapping) string {
	framework, prefix := m.Cut()
	if renamed := m.Renamed(target); prefix == "" && renamed != "" {
		return renamed
	}
	return strings.TrimPrefix(target, framework)
}

// explainAbsent says that what the base lacks is what an adapter saves whole, and nil where that is not so.
func (r *resolver) explainAbsent() error {
	p, ok := r.pairUpdates()
	var names []string
	for _, s := range p.left {
		if s.was == nil {
			names = append(names, s.target)
		}
	}
	if !ok || names == nil {
		return nil
	}
	return fault.New(fault.Mismatch, "the base lacks %d tensors that the adapter saves whole, such as those of a head for its task: %s", len(names), fault.List(names, 3)).
		WithHint("--add-tensors adds them, and changes config.json")
}

// otherShape is the error of a saved tensor that has not the shape of the base's.
func otherShape(target string, have, want []uint64) error {
	e := fault.New(fault.Mismatch, "the adapter saves %q whole with shape %d, the base has %d", target, have, want)
	switch {
	case slices.Contains(have, 0):
		e.WithHint("the file was saved from a model that DeepSpeed's ZeRO-3 had partitioned, which leaves saved modules empty; gather the weights, as zero_to_fp32.py does, and save the adapter again")
	case !isVocabulary(target):
		e.WithHint("the adapter has a head for another number of classes; --add-tensors puts it in place of the base's, and changes config.json")
	case len(have) == 2 && len(want) == 2 && have[1] == want[1]:
		e.WithHint("the vocabulary was resized for the adapter; --grow-vocabulary adds the rows, and changes config.json")
	}
	return e
}

// addTensors gives the base the tensors that adapters save whole and it lacks, or has in another shape.
func (p *Plan) addTensors() error {
	p.added = make(map[string]saved)
	class := ""
	for i := range p.adapters {
		m := p.adapters[i].Source.Manifest()
		if len(m.Adapters) != 1 {
			continue // addAdapter says so
		}
		r := &resolver{plan: p, index: i, adapter: &m.Adapters[0], manifest: m, names: naming.Index(p.base.Names())}
		if r.groupExperts() != nil || r.dropTwins() != nil {
			continue // so does resolve
		}
		pair, ok := r.pairUpdates()
		if !ok || len(pair.left) == 0 {
			continue
		}
		if p.options.Undo != nil {
			return fault.New(fault.Unsupported, "an undo record holds values, and not that a tensor was added or had another shape: %s", fault.List(savedNames(pair.left), 3)).
				WithHint("merge without --undo, and keep the base")
		}
		task, err := p.addSaved(r, pair)
		if err != nil {
			return fault.InFile(err, p.adapters[i].Name)
		}
		if class != "" && task.Class != "" && class != task.Class {
			return fault.New(fault.Mismatch, "one adapter is for %s, another for %s", class, task.Class).WithHint("merge one of them")
		}
		class = task.Class
	}
	return nil
}

func savedNames(all []saved) (names []string) {
	for _, s := range all {
		names = append(names, s.name)
	}
	return names
}

// addSaved changes the base for one adapter.
func (p *Plan) addSaved(r *resolver, pair pairing) (naming.Task, error) {
	if err := p.addPrefix(pair); err != nil {
		return naming.Task{}, err
	}
	var changes []checkpoint.Change
	for i := range pair.left {
		s := &pair.left[i]
		d := s.tensor.DType
		if ref, ok := p.base.Lookup(s.name); ok {
			d = ref.Tensor.DType
		} else if common := p.commonDType(); common != dtype.Invalid {
			d = common
		}
		n, _ := d.NBytes(uint64(s.tensor.Elements()))
		changes = append(changes, checkpoint.Change{Name: s.name, Zeros: &safetensors.Tensor{DType: d, Shape: s.tensor.Shape, NBytes: n}})
		p.added[s.name] = *s
		if s.was == nil {
			p.warn("the base lacks %q, which is added with shape %d, as %v", s.name, s.tensor.Shape, d)
		} else {
			p.warn("the base has %q with shape %d; the adapter's, with shape %d, takes its place", s.name, s.was, s.tensor.Shape)
		}
	}
	base, err := p.base.Reshape(changes)
	if err != nil {
		return naming.Task{}, err
	}
	p.base, p.reshaped = base, true
	return p.describeTask(r, pair)
}

// addPrefix gives the base's tensors the prefix that their names have in the model that the adapter was trained in, where they
// lack it: transformers 4 refuses a checkpoint of a trunk without the prefix and a head beside it.
func (p *Plan) addPrefix(pair pairing) error {
	_, prefix := pair.mapping.Cut()
	if prefix == "" {
		return nil
	}
	heads := naming.HeadSegments(p.base.Config.ModelType)
	for _, s := range pair.left {
		segment, _, _ := strings.Cut(s.name, ".")
		heads[segment] = true
	}
	names := make(map[string]string)
	for _, name := range p.base.Names() {
		if segment, _, _ := strings.Cut(name, "."); !heads[segment] {
			names[name] = prefix + name
		}
	}
	base, err := p.base.Rename(names)
	if err != nil {
		return err
	}
	p.base, p.reshaped = base, true
	p.renamed = names
	p.warn("the names of the base's %d tensors get %q in front, as in the model that the adapter was trained in", len(names), prefix)
	return nil
}

// commonDType is the dtype of 16 bits or more that most values of the base have, Invalid where none has one.
func (p *Plan) commonDType() dtype.Type {
	elements := make(map[dtype.Type]int64)
	for _, name := range p.base.Names() {
		if ref, _ := p.base.Lookup(name); ref.Tensor.DType.IsFloat() && ref.Tensor.DType.Size() >= 2 {
			elements[ref.Tensor.DType] += ref.Tensor.Elements()
		}
	}
	common := dtype.Invalid
	for _, d := range slices.Sorted(maps.Keys(elements)) {
		if elements[d] > elements[common] {
			common = d
		}
	}
	return common
}
