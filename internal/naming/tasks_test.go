package naming_test

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/naming"
)

// TestFindTask: the class in which an adapter was trained follows from what it says and saves, or
// is not guessed.
func TestFindTask(t *testing.T) {
	classifier := []string{"classifier.weight", "classifier.bias"}
	dense := []string{"classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias"}
	score := []string{"score.weight"}
	whole := append([]string{"pre_classifier.weight", "pre_classifier.bias"}, classifier...)
	for _, c := range []struct {
		modelType, class, word string
		changed, saved         []string
		want                   string
	}{
		{"bert", "", "SEQ_CLS", classifier, classifier, "BertForSequenceClassification"},
		{"bert", "", "TOKEN_CLS", classifier, classifier, "BertForTokenClassification"},
		{"bert", "BertForTokenClassification", "", classifier, classifier, "BertForTokenClassification"},
		{"bert", "", "", classifier, classifier, ""}, // either
		{"bert", "MyBert", "", classifier, classifier, ""},
		{"bert", "", "QUESTION_ANS", []string{"qa_outputs.weight", "qa_outputs.bias"}, nil, "BertForQuestionAnswering"},
		{"roberta", "", "", dense, dense, "RobertaForSequenceClassification"},
		{"roberta", "", "", classifier, classifier, "RobertaForTokenClassification"},
		{"distilbert", "", "", whole, whole, "DistilBertForSequenceClassification"},
		{"distilbert", "", "", classifier, whole, "DistilBertForSequenceClassification"}, // of another number of classes
		{"distilbert", "", "SEQ_CLS", classifier, classifier, "DistilBertForSequenceClassification"},
		{"gpt2", "", "SEQ_CLS", score, score, "GPT2ForSequenceClassification"},
		{"llama", "", "", score, score, "LlamaForSequenceClassification"}, // the class for tokens has a bias
		{"llama", "", "", []string{"score.weight", "score.bias"}, []string{"score.weight", "score.bias"}, "LlamaForTokenClassification"},
		{"llama", "", "SEQ_CLS", []string{"value_head.weight"}, []string{"value_head.weight"}, ""},
		{"vit", "ViTForImageClassification", "", classifier, classifier, "ViTForImageClassification"},
		{"vit", "", "", classifier, classifier, "ViTForImageClassification"},
		{"esm", "", "TOKEN_CLS", classifier, classifier, "EsmForTokenClassification"},
		{"", "", "SEQ_CLS", classifier, classifier, ""},
		{"unheard-of", "", "SEQ_CLS", classifier, classifier, ""},
	} {
		got, ok := naming.FindTask(c.modelType, c.class, c.word, c.changed, c.saved)
		if got.Class != c.want || ok != (c.want != "") {
			t.Errorf("FindTask(%q, %q, %q, %q) = %q, %v, want %q", c.modelType, c.class, c.word, c.changed, got.Class, ok, c.want)
		}
	}
}

// TestTaskNamesItsLabels: the number of labels is that of the rows of some parameters of the head.
func TestTaskNamesItsLabels(t *testing.T) {
	saved := []string{"classifier.weight", "classifier.bias"}
	task, _ := naming.FindTask("bert", "", "SEQ_CLS", saved, saved)
	if want := []string{"classifier.bias", "classifier.weight"}; !slices.Equal(task.Labels, want) || !slices.Equal(task.Heads, want) {
		t.Errorf("labels %q in the head %q, want %q in both", task.Labels, task.Heads, want)
	}
	if want := []string{"bert.pooler.dense.bias", "bert.pooler.dense.weight"}; !slices.Equal(task.Needs, want) {
		t.Errorf("the class needs %q, want %q", task.Needs, want)
	}
}
