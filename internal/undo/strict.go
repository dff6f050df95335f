package undo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"unicode/utf8"
)

// decodeStrict decodes one JSON text to v, a pointer to a struct with a json tag on every field. encoding/json alone would let pass
// what spec/UNDO.md does not: members that are missing, twice or spelled in other letters, null, and text that is not UTF-8.
func decodeStrict(text []byte, v any) error {
	if !utf8.Valid(text) {
		return fmt.Errorf("the text is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := checkValue(d, reflect.TypeOf(v).Elem(), ""); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("something follows the object")
	}
	return json.Unmarshal(text, v)
}

// checkValue reads one value and compares its form with a type; where is its place, for errors.
func checkValue(d *json.Decoder, t reflect.Type, where string) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	switch t.Kind() {
	case reflect.Struct:
		if token != json.Delim('{') {
			return fmt.Errorf("%q is %v, want an object", where, token)
		}
		if err := checkMembers(d, t, where); err != nil {
			return err
		}
	case reflect.Slice:
		if token != json.Delim('[') {
			return fmt.Errorf("%q is %v, want a list", where, token)
		}
		for i := 0; d.More(); i++ {
			if err := checkValue(d, t.Elem(), fmt.Sprintf("%s[%d]", where, i)); err != nil {
				return err
			}
		}
	case reflect.Map: // of texts
		if token != json.Delim('{') {
			return fmt.Errorf("%q is %v, want an object", where, token)
		}
		if err := checkTexts(d, where); err != nil {
			return err
		}
	case reflect.String:
		if _, ok := token.(string); !ok {
			return fmt.Errorf("%q is %v, want a text", where, token)
		}
		return nil
	case reflect.Bool:
		if _, ok := token.(bool); !ok {
			return fmt.Errorf("%q is %v, want true or false", where, token)
		}
		return nil
	default:
		if _, ok := token.(json.Number); !ok {
			return fmt.Errorf("%q is %v, want a number", where, token)
		}
		return nil
	}
	_, err = d.Token() // the end of the object or list
	return err
}

// checkTexts reads the members of an object of texts, each once.
func checkTexts(d *json.Decoder, where string) error {
	seen := make(map[string]bool)
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name := token.(string)
		if seen[name] {
			return fmt.Errorf("the member %q of %q is there twice", name, where)
		}
		seen[name] = true
		if err := checkValue(d, reflect.TypeFor[string](), where+"."+name); err != nil {
			return err
		}
	}
	return nil
}

// checkMembers reads the members of an object, which must be those of a struct, each once.
func checkMembers(d *json.Decoder, t reflect.Type, where string) error {
	due := make(map[string]reflect.Type, t.NumField())
	for i := range t.NumField() {
		due[t.Field(i).Tag.Get("json")] = t.Field(i).Type
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name := token.(string) // the decoder lets nothing else pass
		member, ok := due[name]
		if !ok {
			return fmt.Errorf("the member %q of %q is unknown, or there twice", name, where)
		}
		delete(due, name)
		if err := checkValue(d, member, where+"."+name); err != nil {
			return err
		}
	}
	for name := range due {
		return fmt.Errorf("%q has no member %q", where, name)
	}
	return nil
}
