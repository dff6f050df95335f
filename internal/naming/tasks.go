package naming

import (
	_ "embed"
	"slices"
	"strings"
)

// Task is a transformers class that puts a head on the trunk of a model.
type Task struct {
	Class  string   // its name in config.json's "architectures"
	Heads  []string // the parameters of the head
	Labels []string // the parameters among them with one row per label
	Needs  []string // parameters of the trunk that some checkpoints lack, such as a pooler's

	word string // PEFT's word for the task, "-" if it has none
}

// tasks.txt lists the classes of transformers 5.24 with their heads; tasks.py writes it.
//
//go:embed tasks.txt
var taskTable string

// tasksOf reads the lines of the table for a model type.
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

// FindTask finds the class that an adapter was trained with. class is its name and word is PEFT's
// word for the task, each "" if the adapter does not say; a known class decides. changed are the
// parameters that the adapter has and the base lacks in this shape: all must be in the head. saved
// are all parameters of the adapter. If several classes fit, the one with the largest head that is
// saved whole wins. ok is false if none fits or the choice is not certain.
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

var (
	// headSegments begin the names of a head beside the trunk, whatever the model.
	headSegments = []string{
		"answer_head", "classification_head", "classifier", "classifier_distill", "cls", "cls_classifier",
		"decode_head", "dist_head", "distillation_classifier", "embed_out", "lm_head", "logits_proj",
		"output_projection", "pre_classifier", "qa_classifier", "qa_outputs", "score", "segmentation_head",
		"sequence_summary", "splinter_qass", "v_head", "value_head",
	}
	// headSegmentsOf do so in models of these types; in others they are a part of the trunk.
	headSegmentsOf = map[string][]string{
		"dense": {"eurobert"}, "fc": {"textnet"}, "layernorm": {"cvt"}, "norm": {"poolformer", "swiftformer"},
		"head":   {"modernbert", "modernbert-decoder", "modernvbert", "swiftformer"},
		"pooler": {"deberta", "deberta-v2"},
		"projector": {"data2vec-audio", "hubert", "sew", "sew-d", "unispeech", "unispeech-sat", "wav2vec2",
			"wav2vec2-bert", "wav2vec2-conformer", "wavlm"},
	}
)

// IsHeadSegment reports whether this segment begins the names of a head beside the trunk in models
// of a type.
func IsHeadSegment(segment, modelType string) bool {
	return slices.Contains(headSegments, segment) || slices.Contains(headSegmentsOf[segment], modelType)
}

// IsLabelSegment reports whether this segment starts the name of a parameter with one row per
// label, in any model class.
func IsLabelSegment(segment string) bool {
	for line := range strings.Lines(taskTable) {
		for _, word := range strings.Fields(line)[3:] {
			if first, _, _ := strings.Cut(word, "."); first == segment && strings.HasSuffix(word, "*") {
				return true
			}
		}
	}
	return false
}

// IsSubset reports whether whole contains every element of part.
func IsSubset(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(s string) bool { return !slices.Contains(whole, s) })
}
