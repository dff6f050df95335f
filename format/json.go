package format

import (
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
)

// scanner reads the canonical JSON of a manifest (spec section 6) and checks it at the same time: a
// text it reads without an error is the only form of its content. The first error sticks; values
// read after it are zero.
type scanner struct {
	*jsontext.Scanner
	newer bool // the file has a later minor version: unknown members are ignored
	notes []string
}

// maxNotes bounds a scanner's notes on ignored members.
const maxNotes = 16

// textRules maps a problem of the text to the rule it breaks.
var textRules = map[jsontext.Problem]int{
	jsontext.Encoding: 18, jsontext.Syntax: 19, jsontext.Space: 20, jsontext.Order: 21, jsontext.Text: 22,
	jsontext.Number: 23, jsontext.Range: 24, jsontext.Depth: 25, jsontext.Type: 28,
}

func newScanner(text string, newer bool) *scanner {
	s := &scanner{Scanner: jsontext.New(text, jsontext.Canonical), newer: newer}
	s.MaxDepth, s.MaxInteger = maxDepth, maxInteger
	return s
}

// err returns the first error with its rule.
func (s *scanner) err() error {
	var e *jsontext.Error
	if errors.As(s.Err(), &e) {
		return inManifest(textRules[e.Problem], e.At, "%s", e.Msg)
	}
	return s.Err()
}

// ok reports whether no error has occurred yet.
func (s *scanner) ok() bool { return s.Err() == nil }

// fail records the first error with its position in the text.
func (s *scanner) fail(rule, at int, format string, args ...any) {
	if s.ok() {
		s.Fail(inManifest(rule, at, format, args...))
	}
}

func inManifest(rule, at int, format string, args ...any) *fault.Error {
	return broken(rule, "byte %d of the manifest: %s", at, fmt.Sprintf(format, args...))
}

// record iterates over the members of an object. members lists the members of its table in the
// spec, ascending; a ? marks an optional one. record yields every listed member that is present. An
// unlisted member is an error, or is ignored in a file of a later minor version.
func (s *scanner) record(what string, members ...string) iter.Seq[string] {
	return func(yield func(string) bool) {
		start, due, missing := s.Pos(), 0, ""
		skip := func(until func(name string) bool) {
			for ; due < len(members); due++ {
				name, optional := strings.CutSuffix(members[due], "?")
				if until(name) {
					return
				}
				if !optional && missing == "" {
					missing = name
				}
			}
		}
		for at, key := range s.Object() {
			skip(func(name string) bool { return name >= key })
			if due < len(members) && strings.TrimSuffix(members[due], "?") == key {
				due++
				if !s.ok() || !yield(key) {
					return
				}
				continue
			}
			s.ignore(what, key, at)
		}
		// Only at the end is it clear whether a member is missing or out of order.
		if skip(func(string) bool { return false }); missing != "" {
			s.fail(26, start, "%s lacks member %q", what, missing)
		}
	}
}

// ignore skips an unlisted member, if that is allowed.
func (s *scanner) ignore(what, key string, at int) {
	if !s.newer {
		s.fail(27, at, "%s has the unknown member %q", what, key)
		return
	}
	if len(s.notes) < maxNotes {
		s.notes = append(s.notes, fmt.Sprintf("%s: ignored member %q, which belongs to a later version", what, key))
	}
	s.Skip()
}
