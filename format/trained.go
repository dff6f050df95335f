package format

import (
	"encoding/json"
	"strings"

	"github.com/loratool/loratool/internal/jsontext"
)

// maxTrainedBytes bounds the configuration that TrainedIn reads. Real ones have a few kilobytes.
const maxTrainedBytes = 16 << 20

// TrainedIn returns what PEFT's configuration, if it is attached, says about the training: the
// model's class in transformers, and PEFT's name for the task, such as SEQ_CLS. Each is "" if the
// configuration does not say it or cannot be read. Neither changes how the adapter is applied.
func TrainedIn(src Source) (class, task string) {
	m := src.Manifest()
	for i, a := range m.Attachments {
		if a.Name != PEFTConfig || a.NBytes > maxTrainedBytes {
			continue
		}
		text := make([]byte, a.NBytes)
		var config map[string]json.RawMessage
		if src.ReadBlobAt(text, len(m.Tensors)+i, 0) != nil || jsontext.Decode(text, &config) != nil {
			return "", ""
		}
		jsontext.Decode(config["task_type"], &task) // null or another type leaves task empty
		var mapping map[string]json.RawMessage
		jsontext.Decode(config["auto_mapping"], &mapping)
		var library string
		jsontext.Decode(mapping["parent_library"], &library)
		if strings.HasPrefix(library, "transformers.") {
			jsontext.Decode(mapping["base_model_class"], &class)
		}
	}
	return class, task
}
