package convert

import (
	"errors"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fault"
)

// TestConfigurationsAreReadAsPEFTReadsThem: only the exact spelling of a field counts, and a value
// at which PEFT raises an error is refused.
func TestConfigurationsAreReadAsPEFTReadsThem(t *testing.T) {
	c, err := parsePEFTConfig([]byte(`{"peft_type":"LORA","r":4,"lora_alpha":16,"Lora_Alpha":0,"u\u017fe_rslora":true}`))
	if err != nil || *c.Alpha != 16 || c.RSLoRA || len(c.notes) != 2 || len(c.requires) != 0 {
		t.Errorf("a configuration with fields in other letters is %+v, %v, want alpha 16, no rsLoRA, and two notes", c, err)
	}
	if c, err = parsePEFTConfig([]byte(`{"peft_type":"LORA","r":4,"lora_alpha":0}`)); err != nil || len(c.notes) != 1 || !strings.Contains(c.notes[0], "lora_alpha is 0") {
		t.Errorf("lora_alpha 0: %v, notes %q, want one that names it", err, c.notes)
	}
	for text, word := range map[string]string{
		`{"peft_type":"LORA","r":4,"lora_alpha":null}`: "lora_alpha is null",
		`{"peft_type":"LORA","r":null,"lora_alpha":4}`: "r is null",
		`{"peft_type":"LORA","r":4,"lora_alpha":"16"}`: `lora_alpha is "16", want a number`,
		`{"peft_type":"lo\u0001ra"}`:                   "not the name of a method",
		"\ufeff" + `{"peft_type":"LORA","r":4}`:        "byte order mark",
	} {
		if _, err := parsePEFTConfig([]byte(text)); !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), word) {
			t.Errorf("parsePEFTConfig(%s): %v, want a refusal with %q", text, err, word)
		}
	}
}
