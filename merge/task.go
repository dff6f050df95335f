package merge

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// describeTask makes config.json say which class the model is of now, and how many labels it has. Where that is not known, a
// warning says what to set.
func (p *Plan) describeTask(r *resolver, pair pairing) (task naming.Task, err error) {
	var changed, whole []string
	rows := make(map[string]uint64)
	for _, s := range pair.left {
		changed = append(changed, s.name)
	}
	for _, b := range r.adapter.Beside {
		if b.Action != format.Replace {
			continue
		}
		name := newName(b.Target, pair.mapping)
		whole = append(whole, name)
		if shape := r.blob(b.Tensor).tensor().Shape; len(shape) > 0 {
			rows[name] = shape[0]
		}
	}
	class, word := format.TrainedIn(p.adapters[r.index].Source)
	task, ok := naming.FindTask(p.base.Config.ModelType, class, word, changed, whole)
	if !ok {
		p.warn("which class of transformers has %s is not certain: set architectures in config.json, and id2label where it classifies", fault.List(changed, 3))
		return naming.Task{}, nil
	}
	if naming.IsSubset(changed, task.Heads) { // else they have the names of another version
		p.checkTask(task, whole)
	}
	p.base.Config.Architectures = []string{task.Class}
	for _, name := range task.Labels {
		if n := rows[name]; n > 0 {
			return task, p.setTask(task.Class, n)
		}
	}
	return task, p.setTask(task.Class, 0)
}

// checkTask warns of parameters that the class has and that are neither in the base nor saved.
func (p *Plan) checkTask(task naming.Task, whole []string) {
	names := naming.Index(p.base.Names())
	var absent []string
	for _, name := range append(slices.Clone(task.Heads), task.Needs...) {
		if !names.Has(name) && !slices.Contains(whole, name) {
			absent = append(absent, name)
		}
	}
	if absent != nil {
		p.warn("%s has %s, and neither the base nor the adapter does: transformers makes them at random, and the result is not the model that was trained",
			task.Class, fault.List(absent, 3))
	}
}

// setTask makes config.json name the class and, where nLabels is not 0, as many labels. Names of labels that are there stay
// if their number is right; an adapter holds none.
func (p *Plan) setTask(class string, nLabels uint64) error {
	const name = "config.json"
	labels := ""
	if nLabels > 0 {
		labels = fmt.Sprintf(", with %d labels", nLabels)
	}
	if !p.base.IsDir || !slices.Contains(p.base.Side, name) {
		p.warn("the model is a %s now%s: set architectures and id2label in the model's config.json", class, labels)
		return nil
	}
	text, err := p.sideText(name)
	if err != nil {
		return err
	}
	text = setValue(text, indented([]string{class}), "architectures")
	if have := numberOfLabels(text); nLabels > 0 && have != nLabels {
		text = setLabels(text, nLabels)
		labels += fmt.Sprintf(", LABEL_0 to LABEL_%d: set id2label and label2id to their names", nLabels-1)
	}
	p.side[name] = text
	p.warn("config.json says that the model is a %s%s", class, labels)
	return nil
}

// defaultLabels is how many labels a configuration has that does not say it.
const defaultLabels = 2

// numberOfLabels is how many labels a configuration has.
func numberOfLabels(text []byte) uint64 {
	var names map[string]json.RawMessage
	if value, ok := valueAt(text, "id2label"); ok && json.Unmarshal([]byte(value), &names) == nil && names != nil {
		return uint64(len(names))
	}
	if value, ok := valueAt(text, "num_labels"); ok {
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			return n
		}
	}
	return defaultLabels
}

// setLabels gives a configuration n labels, with the names that transformers gives them.
func setLabels(text []byte, n uint64) []byte {
	names, numbers := []byte("{"), []byte("{")
	for i := range n {
		separator := ",\n    "
		if i == 0 {
			separator = "\n    "
		}
		names = fmt.Appendf(names, `%s"%d": "LABEL_%d"`, separator, i, i)
		numbers = fmt.Appendf(numbers, `%s"LABEL_%d": %d`, separator, i, i)
	}
	text = setValue(text, string(names)+"\n  }", "id2label")
	text = setValue(text, string(numbers)+"\n  }", "label2id")
	for _, field := range []string{"num_labels", "_num_labels"} {
		if _, ok := valueAt(text, field); ok {
			text = setValue(text, fmt.Sprint(n), field)
		}
	}
	return text
}

// indented is the text of a value of config.json, as transformers writes it.
func indented(v any) string {
	text, _ := json.MarshalIndent(v, "  ", "  ") // of strings, no error
	return string(text)
}
