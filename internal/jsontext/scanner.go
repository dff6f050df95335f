// Package jsontext reads every JSON text of this module: manifests, headers, undo records,
// configurations, indexes. A Scanner walks a text in one of three forms and says at which byte an
// error is. Decode and DecodeExact set the fields of a struct; Value and Set read and change single
// values of an object.
//
// encoding/json is not strict enough. It accepts "Lora_Alpha" for lora_alpha, silently keeps the
// last of two equal keys, and treats different texts alike: invalid UTF-8, half surrogate pairs,
// null in place of a number.
package jsontext

import (
	"context"
	"fmt"
	"iter"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/fault"
)

// Form is how strictly a text is read.
type Form uint8

const (
	// Python accepts the texts that Python's json module accepts, except NaN and Infinity. Half a
	// surrogate pair and invalid UTF-8 become U+FFFD.
	Python Form = iota
	// Strict accepts RFC 8259 in valid UTF-8, with whole surrogate pairs.
	Strict
	// Canonical accepts one text for each content: no white space, ascending keys, each character
	// and integer in its only form (spec/FORMAT.md, section 6). Besides objects, arrays and strings
	// it allows only integers.
	Canonical
)

// Problem is the reason why a Scanner refuses a text.
type Problem uint8

// The problems, in the order of the rules of spec/FORMAT.md.
const (
	Encoding Problem = iota // invalid UTF-8, or a byte order mark
	Syntax                  // not JSON
	Space                   // white space in a canonical text
	Order                   // keys out of order in a canonical text
	Text                    // a control character in a string, or an invalid or non-canonical escape
	Number                  // not an integer, or not in its only form
	Range                   // an integer beyond the limit
	Depth                   // nested too deep
	Type                    // a value of the wrong type
	Members                 // a missing, unknown or repeated member, where members are checked
)

// Error is an error in a text, with its position.
type Error struct {
	Problem Problem
	At      int // byte offset in the text
	Msg     string
}

// Error returns the message, preceded by the position unless the message names a place.
func (e *Error) Error() string {
	if e.Problem >= Type || e.At == 0 {
		return e.Msg
	}
	return fmt.Sprintf("at byte %d: %s", e.At, e.Msg)
}

// Scanner walks a JSON text. The first error sticks: values read after it are zero, and loops over
// objects and arrays end. Strings without escapes are parts of the text, so a scan needs little
// memory beyond the text.
type Scanner struct {
	// MaxDepth bounds the nesting of objects and arrays. New sets it to the limit of encoding/json.
	MaxDepth int
	// MaxInteger bounds the magnitude of the result of Integer. New sets it to 2^63 - 1.
	MaxInteger int64
	// Context, if not nil, is checked regularly during a long text. Its error becomes the
	// Scanner's.
	Context context.Context

	text    string
	pos     int
	depth   int
	members int // members of objects read so far
	form    Form
	err     error // the first error
}

const (
	defaultDepth  = 10_000
	membersPerAsk = 1 << 12 // members between two checks of the context
)

// New returns a Scanner for text. It checks the encoding of the whole text at once.
func New(text string, form Form) *Scanner {
	s := &Scanner{form: form, MaxDepth: defaultDepth, MaxInteger: math.MaxInt64}
	Reset(s, text)
	return s
}

// Reset lets a Scanner begin with another text, and forgets the error of the last one.
func Reset(s *Scanner, text string) {
	s.text, s.pos, s.depth, s.members, s.err = text, 0, 0, 0, nil
	if strings.HasPrefix(text, "\ufeff") {
		s.Failf(Encoding, 0, "the text begins with a byte order mark, which JSON does not allow; save it as UTF-8 without one")
	}
	if s.form != Python && !utf8.ValidString(text) {
		s.Failf(Encoding, invalidAt(text), "not UTF-8")
	}
}

// invalidAt returns the position of the first byte that is not valid UTF-8.
func invalidAt(text string) int {
	for at, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[at:], "\ufffd") {
			return at
		}
	}
	return len(text)
}

// Err returns the first error: an *Error, or an error from Fail or from the context.
func (s *Scanner) Err() error { return s.err }

// Fail records err if it is the first error.
func (s *Scanner) Fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

// Failf records a problem at a byte of the text if it is the first error.
func (s *Scanner) Failf(p Problem, at int, format string, args ...any) {
	if s.err == nil {
		s.err = &Error{Problem: p, At: at, Msg: fault.New(fault.Corrupt, format, args...).Msg} // fault.New cuts long strings
	}
}

// Pos returns the position of the next byte, after skipping white space unless the text is
// canonical.
func (s *Scanner) Pos() int {
	if s.form != Canonical {
		s.skipSpace()
	}
	return s.pos
}

// Offset returns the position after everything read so far.
func (s *Scanner) Offset() int { return s.pos }

// Rewind returns to the position of a value, to read it again.
func (s *Scanner) Rewind(at int) { s.pos = at }

func (s *Scanner) skipSpace() {
	for s.pos < len(s.text) && isSpace(s.text[s.pos]) {
		s.pos++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// Rest returns the text from Pos.
func (s *Scanner) Rest() string { return s.text[s.Pos():] }

// Done reports whether nothing follows but white space.
func (s *Scanner) Done() bool { return s.Pos() == len(s.text) }

// Next returns the next byte after white space, or 0 at the end of the text and after an error.
func (s *Scanner) Next() byte {
	if s.err != nil || s.Pos() >= len(s.text) {
		return 0
	}
	return s.text[s.pos]
}

// End checks that nothing follows but white space.
func (s *Scanner) End() {
	if s.err == nil && !s.Done() {
		s.unexpected("the end of the text")
	}
}

// expect consumes c.
func (s *Scanner) expect(c byte) bool {
	if s.Next() == c {
		s.pos++
		return true
	}
	s.unexpected(fmt.Sprintf("%q", c))
	return false
}

// unexpected fails because the text does not continue with want.
func (s *Scanner) unexpected(want string) {
	switch {
	case s.err != nil:
	case s.pos >= len(s.text):
		s.Failf(Syntax, s.pos, "the text ends, want %s", want)
	case isSpace(s.text[s.pos]): // in a canonical text
		s.Failf(Space, s.pos, "white space is not allowed")
	default:
		s.Failf(Syntax, s.pos, "got %q, want %s", s.text[s.pos], want)
	}
}

// start checks that a value begins with c.
func (s *Scanner) start(c byte, want string) bool {
	if s.Next() == c {
		return true
	}
	s.mismatch(want)
	return false
}

// mismatch fails because the next value is not want.
func (s *Scanner) mismatch(want string) {
	switch c := s.Next(); {
	case c == '"', c == '{', c == '[', c == '-', '0' <= c && c <= '9':
		s.Failf(Type, s.pos, "got a value that begins with %q, want %s", c, want)
	default:
		s.unexpected(want)
	}
}

// enter consumes the opening c of an object or array.
func (s *Scanner) enter(c byte, want string) bool {
	if !s.start(c, want) {
		return false
	}
	if s.depth++; s.depth > s.MaxDepth {
		s.Failf(Depth, s.pos, "nested more than %d deep", s.MaxDepth)
		return false
	}
	s.pos++
	return true
}

// leave consumes the closing c.
func (s *Scanner) leave(c byte) {
	if s.expect(c) {
		s.depth--
	}
}

// Array iterates over an array. The loop body must consume one value in every iteration.
func (s *Scanner) Array() iter.Seq[int] {
	return func(yield func(int) bool) {
		if !s.enter('[', "'[' of an array") {
			return
		}
		for i := 0; s.err == nil && s.Next() != ']'; i++ {
			if i > 0 && !s.expect(',') || !yield(i) {
				return
			}
		}
		s.leave(']')
	}
}

// Object iterates over the members of an object: the position of the key and the key. The loop body
// must consume the value. Keys may repeat, except in a canonical text.
func (s *Scanner) Object() iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		if !s.enter('{', "'{' of an object") {
			return
		}
		last := ""
		for i := 0; s.err == nil && s.Next() != '}'; i++ {
			if i > 0 && !s.expect(',') {
				return
			}
			at, key := s.key()
			if s.form == Canonical && i > 0 && key <= last {
				s.Failf(Order, at, "key %q follows key %q, want ascending order", key, last)
			}
			last = key
			if !s.expect(':') || !yield(at, key) {
				return
			}
		}
		s.leave('}')
	}
}

// key reads the key of a member and checks the context from time to time.
func (s *Scanner) key() (at int, key string) {
	if s.members++; s.members%membersPerAsk == 0 && s.Context != nil {
		if err := s.Context.Err(); err != nil {
			s.Fail(err)
		}
	}
	if s.Next() != '"' {
		s.unexpected(`'"' of a key`)
		return s.pos, ""
	}
	at = s.pos
	return at, s.Str()
}

// Skip consumes any value.
func (s *Scanner) Skip() {
	switch c := s.Next(); {
	case c == '{':
		for range s.Object() {
			s.Skip()
		}
	case c == '[':
		for range s.Array() {
			s.Skip()
		}
	case c == '"':
		s.Str()
	case c == '-' || '0' <= c && c <= '9':
		s.Number()
	default:
		for _, word := range []string{"null", "true", "false"} {
			if s.Word(word) {
				return
			}
		}
		s.unexpected("a value")
	}
}

// Raw consumes any value and returns its text.
func (s *Scanner) Raw() string {
	from := s.Pos()
	s.Skip()
	if s.err != nil {
		return ""
	}
	return s.text[from:s.pos]
}

// Word consumes null, true or false if it comes next. A canonical text has none of them.
func (s *Scanner) Word(word string) bool {
	if s.err != nil || s.form == Canonical || !strings.HasPrefix(s.Rest(), word) {
		return false
	}
	s.pos += len(word)
	return true
}
