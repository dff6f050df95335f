package resolve

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// An adapter for a task saves the task's whole head. The checkpoint that its configuration names
// has no head, or one for another number of classes: transformers makes the head of
// BertForSequenceClassification at random when it loads bert-base-uncased. This file adds such
// tensors to the base, as shape.go does for a vocabulary.

// saved is a tensor that an adapter saves whole, and that the base lacks or has in another shape.
type saved struct {
	target string // in the adapter
	name   string // in the output
	tensor *format.Tensor
	was    []uint64 // the base's shape; nil if it lacks the tensor
}

// absent looks for tensors that an adapter saves whole and the base lacks, or has in another shape.
type absent struct{ *resolver }

// pairing pairs an adapter's tensors with the base by its updates alone, and lists the rest.
type pairing struct {
	mapping naming.Mapping
	left    []saved
}

// pairUpdates pairs the tensors that an adapter updates, and finds the saved ones that the base
// lacks. ok is false if the updates do not pair, or if no option can add the rest: then the base is
// wrong, or uses other names.
func (r absent) pairUpdates() (p pairing, ok bool) {
	updates := r.wanted(func(f form) bool { b, ok := f.(*beside); return !ok || b.Action != format.Replace })
	mapping, missing, ambiguous := r.names.Match(updates)
	if updates == nil { // the names of the saved tensors alone decide; they must find one of them
		all := r.wanted(func(form) bool { return true })
		mapping = r.names.Best(all)
		if !slices.ContainsFunc(all, func(name string) bool { _, ok := mapping.Lookup(name); return ok }) {
			return p, false
		}
	}
	if ambiguous != nil || missing != nil {
		return p, false
	}
	p.mapping = mapping
	for i := range r.model.Beside {
		b := &r.model.Beside[i]
		if b.Action != format.Replace {
			continue
		}
		tensor := r.blob(b.Tensor).Tensor()
		actual, found := mapping.Lookup(b.Target)
		if !found && r.names.Has(b.Target) {
			actual, found = r.names.Actual(b.Target), true // a head beside a trunk without a prefix
		}
		if found {
			if was := r.base.Tensors[actual].Shape; !slices.Equal(tensor.Shape, was) && !isVocabulary(b.Target) {
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

// isAddable reports whether the base may get a tensor that it lacks. It must not be an embedding, a
// head tied to one, or one parameter of a module that the base has, such as a bias.
func (r absent) isAddable(b *format.Beside, t *format.Tensor, m naming.Mapping) bool {
	module := naming.Module(b.Target)
	switch {
	case naming.IsInputEmbedding(module), naming.IsHead(module) && r.ends().Tied, !t.DType.IsFloat():
		return false
	}
	weight := module + ".weight"
	_, hasWeight := m.Lookup(weight)
	hasWeight = hasWeight || r.names.Has(weight) // of a head beside a trunk without a prefix
	savesWeight := slices.ContainsFunc(r.model.Beside, func(o format.Beside) bool { return o.Target == weight })
	return !hasWeight || savesWeight
}

// newName returns the output's name for a tensor that the base lacks. If the base's names lack the
// prefix of the trained model, they get it, and the tensor keeps the adapter's name.
func newName(target string, m naming.Mapping) string {
	framework, prefix := m.Cut()
	if renamed := m.Renamed(target); prefix == "" && renamed != "" {
		return renamed
	}
	return strings.TrimPrefix(target, framework)
}

// explain returns an error if the base lacks only tensors that the adapter saves whole, else nil.
func (r absent) explain() error {
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
	if r.base.isGGUF() {
		return fault.New(fault.Mismatch, "the base, a GGUF file, has no tensors that are known to be %s, which the adapter saves whole", fault.List(names, 3)).
			WithHint("merge into the checkpoint for transformers, and convert the merged one with llama.cpp")
	}
	return fault.New(fault.Mismatch, "the base lacks %s that the adapter saves whole, as for the head of a task: %s", fault.Count(len(names), "tensor"), fault.List(names, 3)).
		WithHint("Options.AddTensors adds them, and changes config.json")
}

// remedyOfEmpty is what to do about tensors that ZeRO-3 left empty.
const remedyOfEmpty = "save again with stage3_gather_16bit_weights_on_model_save, or gather the checkpoint " +
	"with zero_to_fp32.py first"

// Empty names the tensors that an adapter saves whole without values; "" if there are none. Merge
// refuses it, unless the base's tensor is empty, too.
func Empty(a *format.Adapter, tensors []format.Tensor) string {
	var names []string
	for _, b := range a.Beside {
		if b.Action == format.Replace && slices.Contains(tensors[b.Tensor].Shape, 0) {
			names = append(names, b.Target)
		}
	}
	if names == nil {
		return ""
	}
	return fmt.Sprintf("it saves tensors whole without values, as DeepSpeed ZeRO-3 leaves parameters that it has not "+
		"gathered: %s; %s", fault.List(names, 3), remedyOfEmpty)
}

// otherShape is the error for a saved tensor whose shape differs from the base's.
func otherShape(target string, have, want []uint64) error {
	e := fault.New(fault.Mismatch, "the adapter saves %q whole with shape %d, but the base has shape %d", target, have, want)
	switch {
	case slices.Contains(have, 0):
		e.WithHint("DeepSpeed's ZeRO-3 partitioned the model and left its saved modules empty; " + remedyOfEmpty)
	case !isVocabulary(target):
		e.WithHint("the adapter has a head for another number of classes; Options.AddTensors replaces the base's head and changes config.json")
	case len(have) == 2 && len(want) == 2 && have[1] == want[1]:
		e.WithHint("the vocabulary was resized for the adapter; Options.GrowVocabulary adds the rows, and changes config.json")
	}
	return e
}

// addTensors gives the base the tensors that adapters save whole and the base lacks, or has in
// another shape.
func (s *shaper) addTensors() error {
	class := ""
	for i, a := range s.adapters {
		sheet, err := newSheet(s.Base, s.unfolded())
		if err != nil {
			return err
		}
		r, err := sheet.resolver(i)
		if err != nil {
			continue // Resolve reports the error
		}
		p, ok := absent{r}.pairUpdates()
		if !ok || len(p.left) == 0 {
			continue
		}
		if err := s.checkAddedTwice(p); err != nil {
			return fault.InFile(err, a.Name)
		}
		s.addPrefix(p)
		s.addSaved(p)
		task := s.describeTask(r, p)
		if class != "" && task.Class != "" && class != task.Class {
			return fault.InFile(fault.New(fault.Mismatch, "one adapter is for %s, another for %s", class, task.Class).WithHint("merge one of them"), a.Name)
		}
		class = task.Class
	}
	return nil
}

// checkAddedTwice refuses a tensor that an earlier adapter has added in another shape.
func (s *shaper) checkAddedTwice(p pairing) error {
	for _, x := range p.left {
		if _, added := s.Added[x.name]; added {
			return fault.New(fault.Mismatch, "two adapters save %q whole, this one with shape %[3]d and an earlier one with %[2]d",
				x.name, x.was, x.tensor.Shape).WithHint(hintOneReplacement)
		}
	}
	return nil
}

// hintOneReplacement is the hint when two adapters bring values for one tensor.
const hintOneReplacement = "the output can hold only one of the two: merge each adapter into a model of its own"

// addSaved adds the tensors of one adapter.
func (s *shaper) addSaved(p pairing) {
	var e Edit
	for _, x := range p.left {
		d := x.tensor.DType
		if t, ok := s.Tensors[x.name]; ok {
			d = t.DType
		} else if common := s.commonDType(); common != dtype.Invalid {
			d = common
		}
		e.Tensors = append(e.Tensors, NewTensor{Name: x.name, Zeros: &Tensor{DType: d, Shape: x.tensor.Shape}})
		s.Added[x.name] = x.was
		if x.was == nil {
			s.notes.add("the base lacks %q; the merge adds it with shape %d, as %v", x.name, x.tensor.Shape, d)
		} else {
			s.notes.add("the adapter's %q, of shape %d, replaces the base's, of shape %d", x.name, x.tensor.Shape, x.was)
		}
	}
	s.edit(e)
}

// addPrefix gives the base's names the prefix of the model that the adapter was trained in.
// transformers 4 refuses a checkpoint that holds a trunk without the prefix and a head beside it.
func (s *shaper) addPrefix(p pairing) {
	_, prefix := p.mapping.Cut()
	if prefix == "" {
		return
	}
	own := make(map[string]bool)
	for _, x := range p.left {
		segment, _, _ := strings.Cut(x.name, ".")
		own[segment] = true
	}
	renames := make(map[string]string)
	for _, name := range s.Names() {
		if segment, _, _ := strings.Cut(name, "."); !own[segment] && !naming.IsHeadSegment(segment, s.Config.ModelType) {
			renames[name] = prefix + name
		}
	}
	s.edit(Edit{Rename: renames})
	maps.Copy(s.Renamed, renames)
	s.notes.add("%s of the base get the prefix %q in their names, as in the model that the adapter was trained in", fault.Count(len(renames), "tensor"), prefix)
}

// commonDType returns the float dtype, of 16 bits or more, that most values of the base have, or
// Invalid.
func (b *Base) commonDType() dtype.Type {
	elements := make(map[dtype.Type]int64)
	for _, t := range b.Tensors {
		if t.DType.IsFloat() && t.DType.Size() >= 2 {
			elements[t.DType] += t.Elements()
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
