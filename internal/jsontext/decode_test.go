package jsontext_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/jsontext"
)

type fields struct {
	Alpha  *float64 `json:"lora_alpha"`
	RSLoRA bool     `json:"use_rslora"`
	Names  []string `json:"names"`
	own    int
}

// TestKeysAreExact compares with Python's json.load on the same text.
func TestKeysAreExact(t *testing.T) {
	for _, c := range []struct {
		text  string
		alpha float64
		rs    bool
		near  []string
	}{
		{`{"lora_alpha":16,"Lora_Alpha":0}`, 16, false, []string{"Lora_Alpha"}},
		{`{"lora_alpha":16,"U\u017fe_r\u017flora":true}`, 16, false, []string{"Uſe_rſlora"}}, // U+017F, the long s
		{`{"lora_alpha":1,"lora_alpha":2,"use_rslora":true,"own":3}`, 2, true, nil},
		{`{"\u006cora_alpha":3}`, 3, false, nil},
	} {
		var f fields
		near, err := jsontext.DecodeNear([]byte(c.text), &f)
		if err != nil || f.Alpha == nil || *f.Alpha != c.alpha || f.RSLoRA != c.rs || !slices.Equal(near, c.near) || f.own != 0 {
			t.Errorf("Decode(%s) = %+v, near %q, %v, want alpha %v, %v, near %q", c.text, f, near, err, c.alpha, c.rs, c.near)
		}
	}
}

func TestWrongValuesAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		`{"lora_alpha":"16"}`:      `lora_alpha is "16", want a number`,
		`{"use_rslora":1}`:         `use_rslora is 1, want true or false`,
		`{"names":"all"}`:          `names is "all", want a list`,
		"\ufeff{\"lora_alpha\":1}": "byte order mark",
		`[]`:                       "array",
	} {
		if _, err := jsontext.DecodeNear([]byte(text), new(fields)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Decode(%s): %v, want an error with %q", text, err, want)
		}
	}
}
