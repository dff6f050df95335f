package report

import (
	"reflect"
	"testing"
)

func TestDescribePEFT(t *testing.T) {
	for text, want := range map[string]PEFT{
		`{"peft_version":"0.21.2","task_type":"CAUSAL_LM","target_modules":["q","v"],"modules_to_save":["lm_head"]}`: {
			"0.21.2", "CAUSAL_LM", []string{"q", "v"}, []string{"lm_head"}},
		`{"task_type":null,"target_modules":".*q$","modules_to_save":null}`: {"", "", []string{".*q$"}, []string{}},
		`{"peft_version":1,"target_modules":[1],"modules_to_save":{}}`:      {"", "", []string{}, []string{}},
		`{`: {"", "", []string{}, []string{}},
	} {
		if got := describePEFT([]byte(text)); !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: got %+v, want %+v", text, *got, want)
		}
	}
}
