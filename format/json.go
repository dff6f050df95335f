package format

import (
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
)

// scanner reads the canonical JSON of a manifest (spec section 6) and checks while it reads: a text
// that it goes through without an error is the only form of its content. The first error stays, and
// ends everything that follows; values read after it are zero.
type scanner struct {
	*jsontext.Scanner
	newer bool // the file has a later minor version: members that no table lists are ignored
	notes []string
}

// maxNotes bounds a scanner's notes on ignored members.
const maxNotes = 16

// textRules are the rules of the specification that a text breaks with a problem.
var textRules = map[jsontext.Problem]int{
	jsontext.Encoding: 18, jsontext.Syntax: 19, jsontext.Space: 20, jsontext.Order: 21, jsontext.Text: 22,
	jsontext.Number: 23, jsontext.Range: 24, jsontext.Depth: 25, jsontext.Type: 28,
}

func newScanner(text string, newer bool) *scanner {
	s := &scanner{Scanner: jsontext.New(text, jsontext.Canonical), newer: newer}
	s.MaxDepth, s.MaxInteger = maxDepth, maxInteger
	return s
}

// err is the first error, with the rule that the text breaks.
func (s *scanner) err() error {
	var e *jsontext.Error
	if errors.As(s.Err(), &e) {
		return inManifest(textRules[e.Problem], e.At, "%s", e.Msg)
	}
	return s.Err()
}

// ok reports whether there is no error so far.
func (s *scanner) ok() bool { return s.Err() == nil }

// fail notes the first error, with its position in the text.
func (s *scanner) fail(rule, at int, format string, args ...any) {
	if s.ok() {
		s.Fail(inManifest(rule, at, format, args...))
	}
}

func inManifest(rule, at int, format string, args ...any) *fault.Error {
	return broken(rule, "manifest, at its byte %d: %s", at, fmt.Sprintf(format, args...))
}

// record iterates over the members of an object whose table lists members, in ascending order;
// those that end in ? may be missing. Every member that is there is yielded and no other: what the
// table does not list is an error, or ignored in a file of a later minor version.
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
		// Only the end tells a member that is missing from one that is out of order.
		if skip(func(string) bool { return false }); missing != "" {
			s.fail(26, start, "%s without member %q", what, missing)
		}
	}
}

// ignore skips a member that the table of a record does not list, if that is allowed.
func (s *scanner) ignore(what, key string, at int) {
	if !s.newer {
		s.fail(27, at, "%s with unknown member %q", what, key)
		return
	}
	if len(s.notes) < maxNotes {
		s.notes = append(s.notes, fmt.Sprintf("%s: member %q belongs to a later version and is ignored", what, key))
	}
	s.Skip()
}
