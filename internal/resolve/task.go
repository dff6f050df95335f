package resolve

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// describeTask sets the class of the model and its number of labels in config.json. If they are not
// certain, a note names the fields to set.
func (s *shaper) describeTask(r *resolver, p pairing) (task naming.Task) {
	var changed, whole []string
	rows := make(map[string]uint64)
	for _, x := range p.left {
		changed = append(changed, x.name)
	}
	for _, b := range r.model.Beside {
		if b.Action != format.Replace {
			continue
		}
		name := newName(b.Target, p.mapping)
		whole = append(whole, name)
		if shape := r.blob(b.Tensor).Tensor().Shape; len(shape) > 0 {
			rows[name] = shape[0]
		}
	}
	class, word := format.TrainedIn(r.Source)
	task, ok := naming.FindTask(s.Config.ModelType, class, word, changed, whole)
	if !ok {
		s.notes.add("it is not certain which class of transformers has %s: set architectures in config.json, and id2label if the class classifies", fault.List(changed, 3))
		return naming.Task{}
	}
	if naming.IsSubset(changed, task.Heads) { // else they have the names of another version
		s.checkTask(task, whole)
	}
	s.Base.Config.Architectures = []string{task.Class}
	for _, name := range task.Labels {
		if n := rows[name]; n > 0 {
			s.setTask(task.Class, n)
			return task
		}
	}
	s.setTask(task.Class, 0)
	return task
}

// checkTask warns of parameters of the class that neither the base nor the adapter has.
func (s *shaper) checkTask(task naming.Task, whole []string) {
	names := naming.Index(s.Names())
	var absent []string
	for _, name := range append(slices.Clone(task.Heads), task.Needs...) {
		if !names.Has(name) && !slices.Contains(whole, name) {
			absent = append(absent, name)
		}
	}
	if absent != nil {
		s.notes.add("%s has %s, which neither the base nor the adapter has: transformers makes such parameters at random, so the result is not the model that was trained",
			task.Class, fault.List(absent, 3))
	}
}

// setTask sets the class in config.json and, if nLabels is not 0, this number of labels. Existing
// names of labels stay if their number is right; an adapter has no names.
func (s *shaper) setTask(class string, nLabels uint64) {
	labels := ""
	if nLabels > 0 {
		labels = ", with " + fault.Count(int64(nLabels), "label")
	}
	s.configure(func(text config.Text) config.Text {
		text = text.SetClass(class)
		if nLabels > 0 && text.NLabels() != nLabels {
			text = text.SetLabels(nLabels)
			labels += fmt.Sprintf(", LABEL_0 to LABEL_%d: set id2label and label2id to their names", nLabels-1)
		}
		s.notes.add("config.json says that the model is a %s%s", class, labels)
		return text
	}, fmt.Sprintf("the model is a %s now%s: set architectures and id2label in the model's config.json", class, labels))
}
