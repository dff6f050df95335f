package jsontext

import (
	"bytes"
	"encoding/json"
	"slices"
)

// This file changes single values of an object and leaves every other byte as it is, so that a
// configuration stays as its author wrote it.

// Quote is the text of a string.
func Quote(s string) string {
	text, _ := json.Marshal(s) // of a string, no error
	return string(text)
}

// Value returns the text of the value at a path of keys, and whether it is there.
func Value(text []byte, path ...string) (string, bool) {
	from, to, ok := span(text, path[0])
	switch {
	case !ok:
		return "", false
	case len(path) > 1:
		return Value(text[from:to], path[1:]...)
	}
	return string(text[from:to]), true
}

// Set returns an object with another value at a path of keys, which is added if it is not there;
// all other bytes stay.
func Set(text []byte, value string, path ...string) []byte {
	from, to, ok := span(text, path[0])
	switch {
	case ok && len(path) > 1:
		value = string(Set(text[from:to], value, path[1:]...))
	case !ok && len(path) > 1:
		value = string(Set([]byte("{}"), value, path[1:]...))
	}
	if ok {
		return slices.Concat(text[:from], []byte(value), text[to:])
	}
	open := bytes.IndexByte(text, '{') + 1
	rest := text[open:]
	first := bytes.IndexByte(rest, '"')
	if first < 0 { // an empty object
		return slices.Concat(text[:open], []byte(Quote(path[0])+": "+value), rest)
	}
	return slices.Concat(text[:open], rest[:first], []byte(Quote(path[0])+": "+value+","), rest)
}

// span finds the value of a key of an object; of equal keys the last one counts, as Decode has it.
func span(text []byte, key string) (from, to int, ok bool) {
	s := New(string(text), Python)
	for _, name := range s.Object() {
		at := s.Pos()
		if s.Skip(); name == key {
			from, to, ok = at, s.pos, true
		}
	}
	return from, to, ok && s.Err() == nil
}

// Indented is the text of a value of strings, as transformers writes it into an object.
func Indented(v any) string {
	text, _ := json.MarshalIndent(v, "  ", "  ") // of strings, no error
	return string(text)
}
