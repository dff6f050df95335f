package format

import (
	"encoding/json"
	"strings"

	"github.com/loratool/loratool/internal/jsontext"
)

// maxTrainedBytes bounds the configuration that TrainedIn reads; real ones have some kilobytes.
const maxTrainedBytes = 16 << 20

// TrainedIn is the word of PEFT's configuration, where a source has it among its attachments, about
// the model that an adapter was trained in: its class in transformers, and PEFT's word for the
// task, such as SEQ_CLS. Each is "" where the configuration does not say it or cannot be read;
// neither decides how the adapter is applied.
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
		jsontext.Decode(config["task_type"], &task) // null, or no string, leaves it empty
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
