package format_test

import (
	"testing"

	"github.com/loratool/loratool/format"
)

// withConfig is a source with one attachment.
type withConfig struct {
	format.Source
	manifest format.Manifest
	text     string
}

func (s *withConfig) Manifest() *format.Manifest { return &s.manifest }

func (s *withConfig) ReadBlobAt(p []byte, i int, off int64) error {
	copy(p, s.text[off:])
	return nil
}

// TestTrainedIn: only the words of the configuration count, under the keys that PEFT writes.
func TestTrainedIn(t *testing.T) {
	for _, c := range []struct{ name, text, class, task string }{
		{format.PEFTConfig, `{"task_type": "SEQ_CLS", "auto_mapping": null}`, "", "SEQ_CLS"},
		{format.PEFTConfig, `{"task_type": null, "auto_mapping": {"base_model_class": "ViTForImageClassification", "parent_library": "transformers.models.vit.modeling_vit"}}`, "ViTForImageClassification", ""},
		{format.PEFTConfig, `{"auto_mapping": {"base_model_class": "MLP", "parent_library": "test_regression"}}`, "", ""},
		{format.PEFTConfig, `{"Task_Type": "SEQ_CLS"}`, "", ""},
		{format.PEFTConfig, `{"task_type": 7, "auto_mapping": []}`, "", ""},
		{format.PEFTConfig, `no JSON`, "", ""},
		{format.ModelCard, `{"task_type": "SEQ_CLS"}`, "", ""},
	} {
		s := &withConfig{text: c.text}
		s.manifest.Attachments = []format.Attachment{{Name: c.name, NBytes: int64(len(c.text))}}
		if class, task := format.TrainedIn(s); class != c.class || task != c.task {
			t.Errorf("TrainedIn(%s) = %q, %q, want %q, %q", c.text, class, task, c.class, c.task)
		}
	}
}
