// Package jsonobject reads JSON objects as Python reads them: a key is itself, and no other spelling of
// it. encoding/json would take "Lora_Alpha" for lora_alpha.
package jsonobject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Decode sets the fields of *v, a struct with a json tag on every exported field, from the members of an
// object. A member that has no field is ignored, and of one that is there twice the last one counts.
// Structs below v are read by encoding/json, so v has none: it takes them as json.RawMessage.
//
// near lists the members that have another spelling of a field's name, and are ignored as well.
func Decode(text []byte, v any) (near []string, err error) {
	if bytes.HasPrefix(text, []byte("\ufeff")) {
		return nil, errors.New("it begins with a byte order mark, which JSON does not have; save it as UTF-8 without one")
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, err
	}
	s := reflect.ValueOf(v).Elem()
	names := make(map[string]bool)
	for i := range s.NumField() {
		name := s.Type().Field(i).Tag.Get("json")
		if name == "" {
			continue
		}
		names[name] = true
		if member, ok := members[name]; ok {
			if err := json.Unmarshal(member, s.Field(i).Addr().Interface()); err != nil {
				return nil, explain(name, member, s.Field(i).Type(), err)
			}
		}
	}
	for _, member := range slices.Sorted(maps.Keys(members)) {
		for name := range names {
			if member != name && strings.EqualFold(member, name) {
				near = append(near, member)
			}
		}
	}
	return near, nil
}

// explain says which value a member has, and which it should have.
func explain(name string, value json.RawMessage, t reflect.Type, err error) error {
	if !errors.As(err, new(*json.UnmarshalTypeError)) {
		return fmt.Errorf("%s: %w", name, err)
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	want, ok := map[reflect.Kind]string{
		reflect.Bool: "true or false", reflect.String: "a text", reflect.Int: "a whole number", reflect.Uint64: "a whole number", reflect.Float64: "a number",
		reflect.Slice: "a list", reflect.Map: "an object",
	}[t.Kind()]
	if !ok {
		return fmt.Errorf("%s: %w", name, err)
	}
	const most = 60
	if len(value) > most {
		value = append(slices.Clone(value[:most]), "…"...)
	}
	return fmt.Errorf("%s is %s, want %s", name, strings.ToValidUTF8(string(value), "\ufffd"), want)
}
