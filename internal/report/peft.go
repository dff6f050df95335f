package report

import "github.com/loratool/loratool/internal/jsontext"

// PEFT is what PEFT's configuration says of the training. A field that is not there is empty.
type PEFT struct {
	Version       string   `json:"version"`
	TaskType      string   `json:"task_type"`
	TargetModules []string `json:"target_modules"`  // a single text is a regular expression
	ModulesToSave []string `json:"modules_to_save"` // trained whole
}

// describePEFT reads PEFT's configuration.
func describePEFT(config []byte) *PEFT {
	return &PEFT{
		Version: textOf(config, "peft_version"), TaskType: textOf(config, "task_type"),
		TargetModules: textsOf(config, "target_modules"), ModulesToSave: textsOf(config, "modules_to_save"),
	}
}

// textOf returns a text of a JSON object, "" if it has none under this key.
func textOf(object []byte, key string) (text string) {
	raw, _ := jsontext.Value(object, key)
	if jsontext.Decode([]byte(raw), &text) != nil {
		return ""
	}
	return text
}

// textsOf returns a list of texts of a JSON object. A single text is a list of one.
func textsOf(object []byte, key string) []string {
	texts := []string{}
	raw, _ := jsontext.Value(object, key)
	if text := textOf(object, key); text != "" {
		return []string{text}
	}
	if jsontext.Decode([]byte(raw), &texts) != nil || texts == nil {
		return []string{}
	}
	return texts
}
