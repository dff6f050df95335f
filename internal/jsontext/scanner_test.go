package jsontext_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/jsontext"
)

// texts are JSON, or almost JSON.
var texts = []string{
	"", " ", "null", "nul", "true", "falsey", `""`, `"a`, "\"\xff\"", "\"\xed\xa0\x80\"", "\"\t\"", `"\u0000"`, `"\x"`, `"\u12g4"`, `"\`, `"\"`,
	`"\ud83d\ude00"`, `"\ud83d"`, `"\ude00\ud83d"`, `"\ud83dA"`, `"\ud83d\u0041"`, `"\/\b\f\n\r\t\\"`, "\"\u2028\x7f\"",
	"0", "-0", "00", "01", "-", "+1", "1.", ".5", "1.5", "1e5", "1E+05", "1e", "1e+", "-1.25e-3", "1e400", "9223372036854775808", "NaN", "-Infinity", "0x1",
	"[]", "[1,2]", "[1,]", "[,1]", "[1 2]", "[1", "]", "[null,true]", "[[[]]]", "\v[]", "[] x", "\ufeff[]",
	"{}", `{"a":1}`, `{"a":1,}`, `{"a" 1}`, `{a:1}`, `{"a":1,"a":2}`, `{"a":{"b":[{"c":null}]}}`, `{"a":1}{}`, "{ \"a\"\r\n:\t1 }", `{"":{"":0}}`,
	strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001),
}

// TestPythonFormIsThatOfEncodingJSON takes encoding/json as a second opinion.
func TestPythonFormIsThatOfEncodingJSON(t *testing.T) {
	for _, text := range texts {
		compare(t, text)
	}
}

func FuzzScanner(f *testing.F) {
	for _, text := range texts {
		f.Add(text)
	}
	f.Fuzz(compare)
}

func compare(t *testing.T, text string) {
	errOf := func(form jsontext.Form) error {
		s := jsontext.New(text, form)
		if raw := s.Raw(); s.Err() == nil && strings.TrimLeft(text, " \t\r\n")[:len(raw)] != raw {
			t.Errorf("Raw of %.80q = %.80q, want its value", text, raw)
		}
		s.End()
		return s.Err()
	}
	python, strict, canonical := errOf(jsontext.Python), errOf(jsontext.Strict), errOf(jsontext.Canonical)
	if (python == nil) != json.Valid([]byte(text)) {
		t.Errorf("%.80q: %v, of encoding/json valid is %v", text, python, json.Valid([]byte(text)))
	}
	if strict == nil && (python != nil || !utf8.ValidString(text)) || canonical == nil && strict != nil {
		t.Errorf("%.80q: canonical %v, strict %v, Python %v, want each to take what the one before it takes", text, canonical, strict, python)
	}
	var e *jsontext.Error
	for _, err := range []error{python, strict, canonical} {
		if err != nil && (!errors.As(err, &e) || e.At < 0 || e.At > len(text) || len(e.Msg) > 10_000) {
			t.Errorf("%.80q: %v, want an error with a position in the text", text, err)
		}
	}
	compareAs[string](t, text)
	compareAs[[]string](t, text)
	compareAs[*float64](t, text)
	compareAs[map[string][]int8](t, text)
	compareAs[[]map[string]json.RawMessage](t, text)
	compareAs[uint32](t, text)
	compareAs[[]bool](t, text)
}

// compareAs decodes a text with both decoders. It uses types without structs, because encoding/json
// matches the keys of structs loosely.
func compareAs[T any](t *testing.T, text string) {
	var got, want T
	err, wantErr := jsontext.Decode([]byte(text), &got), json.Unmarshal([]byte(text), &want)
	if (err == nil) != (wantErr == nil) {
		t.Errorf("Decode(%.80q) to %T: %v, encoding/json says %v", text, got, err, wantErr)
	}
	if err == nil && !reflect.DeepEqual(got, want) {
		t.Errorf("Decode(%.80q) = %v, encoding/json gives %v", text, got, want)
	}
}

// TestStrictFormsRefuse texts that Python accepts and other readers may read differently.
func TestStrictFormsRefuse(t *testing.T) {
	for _, c := range []struct {
		text    string
		form    jsontext.Form
		problem jsontext.Problem
		at      int
	}{
		{"\"a\xff\"", jsontext.Strict, jsontext.Encoding, 2},
		{"\ufeff{}", jsontext.Strict, jsontext.Encoding, 0},
		{`["\ud83d"]`, jsontext.Strict, jsontext.Text, 2},
		{`["\ude00\ud83d"]`, jsontext.Strict, jsontext.Text, 2},
		{`[1, 2]`, jsontext.Canonical, jsontext.Space, 3},
		{`{"b":1,"a":2}`, jsontext.Canonical, jsontext.Order, 7},
		{`{"a":1,"a":2}`, jsontext.Canonical, jsontext.Order, 7},
		{`["\u0041"]`, jsontext.Canonical, jsontext.Text, 2},
		{`[1.0]`, jsontext.Canonical, jsontext.Number, 1},
		{`[-0]`, jsontext.Canonical, jsontext.Number, 1},
		{`[9223372036854775808]`, jsontext.Canonical, jsontext.Range, 1},
		{`[null]`, jsontext.Canonical, jsontext.Syntax, 1},
	} {
		s := jsontext.New(c.text, c.form)
		s.Skip()
		s.End()
		var e *jsontext.Error
		if !errors.As(s.Err(), &e) || e.Problem != c.problem || e.At != c.at {
			t.Errorf("%q in form %d: %#v, want problem %d at %d", c.text, c.form, s.Err(), c.problem, c.at)
		}
	}
}

// TestMemoryIsThatOfTheText: a claim in a text costs nothing, and its content costs a small
// multiple of its size.
func TestMemoryIsThatOfTheText(t *testing.T) {
	const n = 200_000
	for name, text := range map[string]string{
		"numbers": "[" + strings.Repeat("0,", n) + "0]",
		"escapes": `["` + strings.Repeat(`\n`, n) + `"]`,
		"keys":    `[{"` + strings.Repeat(`":0,"`, n) + `":0}]`,
		"depth":   strings.Repeat("[", 9999) + strings.Repeat("]", 9999),
	} {
		got := testing.AllocsPerRun(1, func() {
			s := jsontext.New(text, jsontext.Strict)
			s.Skip()
			if s.End(); s.Err() != nil {
				t.Errorf("%s: %v", name, s.Err())
			}
		})
		if got > 100 {
			t.Errorf("%s: %v allocations for one text, want no more for more of it", name, got)
		}
	}
}

type exact struct {
	Name  string            `json:"name"`
	Items []item            `json:"items"`
	Texts map[string]string `json:"texts"`
}

type item struct {
	N  uint8   `json:"n"`
	X  float64 `json:"x"`
	On bool    `json:"on"`
}

func TestDecodeExactWantsEachMemberOnce(t *testing.T) {
	const good = `{"items":[{"n":255,"x":0.1,"on":true}],"name":"a","texts":{"k":"v"}}`
	var got exact
	if err := jsontext.DecodeExact([]byte(good), &got); err != nil || !reflect.DeepEqual(got, exact{"a", []item{{255, 0.1, true}}, map[string]string{"k": "v"}}) {
		t.Errorf("DecodeExact = %+v, %v", got, err)
	}
	for _, c := range [][3]string{
		{`"on":true`, `"on":null`, "items[0].on is null, want true or false"},
		{`"on":true`, `"on":true,"on":true`, "unknown or repeated"},
		{`,"on":true`, ``, `items[0] lacks member "on"`},
		{`"on"`, `"On"`, `member "On" of items[0] is unknown`},
		{`255`, `256`, "items[0].n is 256, want an integer"},
		{`255`, `25.5`, "items[0].n is 25.5, want an integer"},
		{`0.1`, `1e999`, "items[0].x is 1e999, want a number"},
		{`"v"`, `"v","k":"w"`, `member "k" of texts is repeated`},
		{`"v"`, `1`, "texts.k is 1, want a string"},
		{`"a"`, `"\ud800"`, "half a surrogate pair"},
		{`"a"`, "\"\xff\"", "not UTF-8"},
		{`"v"}}`, `"v"}}{}`, "want the end of the text"},
		{good, `[]`, "the text is an array, want an object"},
		{good, `{}`, "the text lacks member"},
	} {
		text := strings.Replace(good, c[0], c[1], 1)
		err := jsontext.DecodeExact([]byte(text), new(exact))
		if err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("DecodeExact(%s): %v, want an error with %q", text, err, c[2])
		}
	}
}

// TestOfEqualKeysTheLastOneIsChanged, because Python reads the last one.
func TestOfEqualKeysTheLastOneIsChanged(t *testing.T) {
	const text = `{"a": {"k": 1}, "a": {"k": 2, "k": 3}}`
	value, ok := jsontext.Value([]byte(text), "a", "k")
	if !ok || value != "3" {
		t.Errorf("Value = %q, %v, want 3", value, ok)
	}
	got, want := jsontext.Set([]byte(text), "4", "a", "k"), strings.Replace(text, "3", "4", 1)
	if !bytes.Equal(got, []byte(want)) {
		t.Errorf("Set = %s, want %s", got, want)
	}
}

func ExampleScanner() {
	s := jsontext.New(`{"shape":[2,3],"shape":[4]}`, jsontext.Strict)
	for at, key := range s.Object() {
		for range s.Array() {
			fmt.Println(at, key, s.Count())
		}
	}
	fmt.Println(s.Err())
	// Output:
	// 1 shape 2
	// 1 shape 3
	// 15 shape 4
	// <nil>
}
