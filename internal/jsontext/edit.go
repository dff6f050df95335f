package jsontext

import (
	"bytes"
	"encoding/json"
	"slices"
)

// This file changes single values of an object and leaves every other byte alone, so that a
// configuration stays as its author wrote it.

// Quote returns a string as JSON.
func Quote(s string) string {
	if isPlain(s) {
		return `"` + s + `"`
	}
	text, _ := json.Marshal(s) // a string cannot fail
	return string(text)
}

// isPlain reports whether a string has only characters that JSON and HTML leave alone.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}

// Value returns the text of the value at a path of keys, and whether it exists.
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

// Set returns the object with a new value at a path of keys, which it adds if necessary. All other
// bytes stay the same.
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

// span finds the value of a key in an object. Of equal keys the last one counts, as in Decode.
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

// Indented returns a value made of strings as JSON, indented as transformers indents it inside an
// object.
func Indented(v any) string {
	text, _ := json.MarshalIndent(v, "  ", "  ") // strings cannot fail
	return string(text)
}

// Delete returns the object without the member at a path of keys, and without the comma that it
// leaves. All other bytes stay the same. A path that does not exist changes nothing.
func Delete(text []byte, path ...string) []byte {
	from, to, ok := span(text, path[0])
	switch {
	case !ok:
		return text
	case len(path) > 1:
		return slices.Concat(text[:from], Delete(text[from:to], path[1:]...), text[to:])
	}
	key := bytes.LastIndex(text[:from], []byte(Quote(path[0])))
	if key < 0 || len(bytes.Trim(text[key+len(Quote(path[0])):from], ": \t\r\n")) > 0 {
		return slices.Concat(text[:from], []byte("null"), text[to:]) // the key is escaped
	}
	const spaces = " \t\r\n"
	if rest := bytes.TrimLeft(text[to:], spaces); rest[0] == ',' {
		return slices.Concat(text[:key], bytes.TrimLeft(rest[1:], spaces))
	}
	before := bytes.TrimRight(text[:key], spaces)
	return slices.Concat(bytes.TrimSuffix(before, []byte(",")), text[to:])
}
