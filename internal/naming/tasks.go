package naming

import (
	_ "embed"
	"slices"
	"strings"
)

// Task is a class of transformers that puts a head on the trunk of a model.
type Task struct {
	Class  string   // as config.json has it in "architectures"
	Heads  []string // the parameters of the head
	Labels []string // those of them whose rows are the labels
	Needs  []string // parameters of the trunk that not every checkpoint of it has, such as those of a pooler

	word string // PEFT's for the task, "-" where it has none
}

// The classes of transformers 5.24 with their heads, which tasks.py has written.
//
//go:embed tasks.txt
var taskTable string

// tasksOf reads the lines of the table that are of a model type.
func tasksOf(modelType string) (all []Task) {
	for line := range strings.Lines(taskTable) {
		words := strings.Fields(line)
		if words[0] != modelType {
			continue
		}
		t := Task{Class: words[1], word: words[2]}
		for _, word := range words[3:] {
			name := strings.TrimRight(word, "*+")
			if strings.HasSuffix(word, "+") {
				t.Needs = append(t.Needs, name)
				continue
			}
			t.Heads = append(t.Heads, name)
			if strings.HasSuffix(word, "*") {
				t.Labels = append(t.Labels, name)
			}
		}
		all = append(all, t)
	}
	return all
}

// FindTask finds the class of a model type that an adapter was trained in. class is its name and
// word is PEFT's for its task, each "" where the adapter does not say it; a class that is known
// decides. changed are the parameters that the adapter brings and the base does not have so, which
// must all be of the head; saved are all that it brings. Where several classes fit, the one with
// the largest head that is saved whole is meant. ok is false where none fits, or the choice is not
// certain.
func FindTask(modelType, class, word string, changed, saved []string) (t Task, ok bool) {
	all := tasksOf(modelType)
	if class != "" {
		i := slices.IndexFunc(all, func(t Task) bool { return t.Class == class })
		if i < 0 {
			return Task{}, false
		}
		return all[i], true
	}
	fits := slices.DeleteFunc(all, func(t Task) bool {
		return word != "" && t.word != "-" && t.word != word || !IsSubset(changed, t.Heads)
	})
	if len(fits) == 1 {
		return fits[0], true
	}
	fits = slices.DeleteFunc(fits, func(t Task) bool { return !IsSubset(t.Heads, saved) })
	slices.SortStableFunc(fits, func(a, b Task) int { return len(b.Heads) - len(a.Heads) })
	if len(fits) == 0 || len(fits) > 1 && len(fits[0].Heads) == len(fits[1].Heads) {
		return Task{}, false
	}
	return fits[0], true
}

// HeadSegments are the first segments of names that stand beside the trunk in models of a type, not
// in it.
func HeadSegments(modelType string) map[string]bool {
	segments := set("cls", "lm_head", "embed_out", "output_projection", "v_head", "value_head")
	for _, t := range tasksOf(modelType) {
		for _, name := range t.Heads {
			segment, _, _ := strings.Cut(name, ".")
			segments[segment] = true
		}
	}
	return segments
}

// IsHeadSegment reports whether this segment begins a parameter whose rows are labels, in a class
// of any model.
func IsHeadSegment(segment string) bool {
	for line := range strings.Lines(taskTable) {
		for _, word := range strings.Fields(line)[3:] {
			if first, _, _ := strings.Cut(word, "."); first == segment && strings.HasSuffix(word, "*") {
				return true
			}
		}
	}
	return false
}

// IsSubset reports whether every element of part is in whole.
func IsSubset(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(s string) bool { return !slices.Contains(whole, s) })
}
