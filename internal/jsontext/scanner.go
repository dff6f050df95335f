// Package jsontext reads every JSON text of this module: manifests, headers, undo records,
// configurations, indexes. A Scanner walks a text in one of three forms, and says at which byte it
// went wrong; Decode and DecodeExact set the fields of a struct with it; Value and Set look up and
// change single values of an object.
//
// encoding/json cannot stand here. It takes "Lora_Alpha" for lora_alpha, keeps the last of two
// equal keys without a word, and reads alike what is not alike: bytes that are not UTF-8, half
// surrogate pairs, null in the place of a number.
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

// Form is how much freedom a text has.
type Form uint8

const (
	// Python is what Python's json module reads, but for NaN and Infinity. Half a surrogate pair
	// and bytes that are not UTF-8 become U+FFFD.
	Python Form = iota
	// Strict is RFC 8259 in UTF-8, with whole surrogate pairs.
	Strict
	// Canonical has one text for each content: no white space, keys in ascending order, each
	// character and integer in its only form (spec/FORMAT.md, section 6). Beside objects, arrays
	// and strings it has integers alone.
	Canonical
)

// Problem is why a Scanner refuses a text.
type Problem uint8

// The problems, in the order of the rules of spec/FORMAT.md.
const (
	Encoding Problem = iota // not UTF-8, or a byte order mark
	Syntax                  // no JSON
	Space                   // white space in a canonical text
	Order                   // keys of a canonical text that do not ascend
	Text                    // a string with an escape that is none or is not the only form, or with a control character
	Number                  // a number that is no integer, or not in its only form
	Range                   // an integer beyond the limit
	Depth                   // nested too deep
	Type                    // a value of another type than wanted
	Members                 // a member that is missing, unknown or there twice, where each counts
)

// Error is a fault of a text, and its place.
type Error struct {
	Problem Problem
	At      int // byte of the text
	Msg     string
}

// Error returns the message, after the position where the message does not name a place itself.
func (e *Error) Error() string {
	if e.Problem >= Type || e.At == 0 {
		return e.Msg
	}
	return fmt.Sprintf("at byte %d: %s", e.At, e.Msg)
}

// Scanner walks a JSON text. The first error stays and ends everything that follows: whatever is
// read after it is zero, and loops over objects and arrays end. Its strings are parts of the text
// unless they have escapes, so that a text costs little more memory than it has bytes.
type Scanner struct {
	// MaxDepth bounds how deep objects and arrays are nested. New sets it to what encoding/json
	// reads.
	MaxDepth int
	// MaxInteger bounds what Integer reads, without the sign. New sets it to 2^63 - 1.
	MaxInteger int64
	// Context, if it is not nil, is asked all through a long text; its error becomes that of the
	// Scanner.
	Context context.Context

	text    string
	pos     int
	depth   int
	members int // of objects, so far
	form    Form
	err     error // the first
}

const (
	defaultDepth  = 10_000
	membersPerAsk = 1 << 12 // members of objects between two looks at the context
)

// New checks the text as a whole.
func New(text string, form Form) *Scanner {
	s := &Scanner{text: text, form: form, MaxDepth: defaultDepth, MaxInteger: math.MaxInt64}
	if strings.HasPrefix(text, "\ufeff") {
		s.Failf(Encoding, 0, "it begins with a byte order mark, which JSON does not have; save it as UTF-8 without one")
	}
	if form != Python && !utf8.ValidString(text) {
		s.Failf(Encoding, invalidAt(text), "not UTF-8")
	}
	return s
}

// invalidAt is the position of the first byte that is not UTF-8.
func invalidAt(text string) int {
	for at, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[at:], "\ufffd") {
			return at
		}
	}
	return len(text)
}

// Err is the first error, an *Error unless it came through Fail or from the context.
func (s *Scanner) Err() error { return s.err }

// Fail keeps err if it is the first.
func (s *Scanner) Fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

// Failf notes a problem at a byte of the text, if it is the first.
func (s *Scanner) Failf(p Problem, at int, format string, args ...any) {
	if s.err == nil {
		s.err = &Error{Problem: p, At: at, Msg: fault.New(fault.Corrupt, format, args...).Msg} // long texts cut
	}
}

// Pos is the position of the next byte that counts.
func (s *Scanner) Pos() int {
	if s.form != Canonical {
		s.skipSpace()
	}
	return s.pos
}

// Offset is the position behind all that was read.
func (s *Scanner) Offset() int { return s.pos }

// Rewind goes back to the position of a value, to read it again.
func (s *Scanner) Rewind(at int) { s.pos = at }

func (s *Scanner) skipSpace() {
	for s.pos < len(s.text) && isSpace(s.text[s.pos]) {
		s.pos++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// Rest is the text from Pos on.
func (s *Scanner) Rest() string { return s.text[s.Pos():] }

// Done reports whether nothing follows.
func (s *Scanner) Done() bool { return s.Pos() == len(s.text) }

// Next is the next byte that counts, 0 at the end of the text and after an error.
func (s *Scanner) Next() byte {
	if s.err != nil || s.Pos() >= len(s.text) {
		return 0
	}
	return s.text[s.pos]
}

// End checks that nothing follows.
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

// unexpected fails because something else stands where want is due.
func (s *Scanner) unexpected(want string) {
	switch {
	case s.err != nil:
	case s.pos >= len(s.text):
		s.Failf(Syntax, s.pos, "the text ends where %s is due", want)
	case isSpace(s.text[s.pos]): // of a canonical text
		s.Failf(Space, s.pos, "white space")
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

// mismatch fails because another value than want begins here.
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

// Array iterates over an array; the body must consume one value at every turn.
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

// Object iterates over the members of an object: the position of the key and the key. The body must
// consume the value. Two members may have the same key, but in a canonical text.
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
				s.Failf(Order, at, "key %q after key %q, want ascending order", key, last)
			}
			last = key
			if !s.expect(':') || !yield(at, key) {
				return
			}
		}
		s.leave('}')
	}
}

// key reads the key of a member, and asks the context now and then.
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

// Word consumes null, true or false, if it comes next. Canonical texts have none of them.
func (s *Scanner) Word(word string) bool {
	if s.err != nil || s.form == Canonical || !strings.HasPrefix(s.Rest(), word) {
		return false
	}
	s.pos += len(word)
	return true
}
