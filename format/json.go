package format

import (
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/fault"
)

// scanner reads canonical JSON (spec section 6) and checks while it reads: a text that it goes through without an error
// is the only form of its content. The first error stays, and ends everything that follows; values read after it are
// zero.
type scanner struct {
	text  string
	pos   int
	depth int
	newer bool  // the file has a later minor version: members that no table lists are ignored
	err   error // the first
	notes []string
}

// maxNotes bounds what a scanner notes about members it ignores.
const maxNotes = 16

// newScanner checks what concerns the text as a whole.
func newScanner(text string, newer bool) *scanner {
	s := &scanner{text: text, newer: newer}
	if strings.HasPrefix(text, "\ufeff") {
		s.fail(18, 0, "a byte order mark")
	}
	if !utf8.ValidString(text) {
		at := 0
		for at < len(text) {
			r, n := utf8.DecodeRuneInString(text[at:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			at += n
		}
		s.fail(18, at, "not UTF-8")
	}
	return s
}

// fail notes the first error, with its position in the text.
func (s *scanner) fail(rule, at int, format string, args ...any) {
	if s.err == nil {
		s.err = inManifest(rule, at, format, args...)
	}
}

func inManifest(rule, at int, format string, args ...any) *fault.Error {
	return broken(rule, "manifest, at its byte %d: %s", at, fmt.Sprintf(format, args...))
}

// next is the next byte, 0 at the end of the text and after an error. The manifest has no byte 0 outside of strings.
func (s *scanner) next() byte {
	if s.err != nil || s.pos >= len(s.text) {
		return 0
	}
	return s.text[s.pos]
}

// expect consumes c.
func (s *scanner) expect(c byte) bool {
	if s.next() == c {
		s.pos++
		return true
	}
	s.unexpected(fmt.Sprintf("%q", c))
	return false
}

// unexpected fails because something else stands where want is due.
func (s *scanner) unexpected(want string) {
	if s.err != nil {
		return
	}
	if s.pos >= len(s.text) {
		s.fail(19, s.pos, "the text ends where %s is due", want)
		return
	}
	switch c := s.text[s.pos]; c {
	case ' ', '\t', '\n', '\r':
		s.fail(20, s.pos, "white space")
	default:
		s.fail(19, s.pos, "got %q, want %s", c, want)
	}
}

// start checks that a value begins with c.
func (s *scanner) start(c byte, want string) bool {
	if s.next() == c {
		return true
	}
	s.mismatch(want)
	return false
}

// mismatch fails because another value than want begins here.
func (s *scanner) mismatch(want string) {
	switch c := s.next(); {
	case c == '"', c == '{', c == '[', c == '-', '0' <= c && c <= '9':
		s.fail(28, s.pos, "got a value that begins with %q, want %s", c, want)
	default:
		s.unexpected(want)
	}
}

// end checks that nothing follows.
func (s *scanner) end() {
	if s.err == nil && s.pos < len(s.text) {
		s.unexpected("the end of the text")
	}
}

// enter consumes the opening c of an object or array.
func (s *scanner) enter(c byte, want string) bool {
	if !s.start(c, want) {
		return false
	}
	if s.depth++; s.depth > maxDepth {
		s.fail(25, s.pos, "nested more than %d deep", maxDepth)
		return false
	}
	s.pos++
	return true
}

// leave consumes the closing c.
func (s *scanner) leave(c byte) {
	if s.expect(c) {
		s.depth--
	}
}

// array iterates over an array; the body must consume one value at every turn.
func (s *scanner) array() iter.Seq[int] {
	return func(yield func(int) bool) {
		if !s.enter('[', "an array") {
			return
		}
		for i := 0; s.err == nil && s.next() != ']'; i++ {
			if i > 0 && !s.expect(',') {
				return
			}
			if !yield(i) {
				return
			}
		}
		s.leave(']')
	}
}

// object iterates over the members of an object: the position of the key and the key, in ascending order. The body
// must consume the value.
func (s *scanner) object() iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		if !s.enter('{', "an object") {
			return
		}
		last := ""
		for i := 0; s.err == nil && s.next() != '}'; i++ {
			if i > 0 && !s.expect(',') {
				return
			}
			at := s.pos
			if s.next() != '"' {
				s.unexpected("a key")
				return
			}
			key := s.str()
			if i > 0 && key <= last && s.err == nil {
				s.fail(21, at, "key %q after key %q, want ascending order", key, last)
			}
			last = key
			if !s.expect(':') || !yield(at, key) {
				return
			}
		}
		s.leave('}')
	}
}

// record iterates over the members of an object whose table lists members, in ascending order; those that end in ? may be
// missing. Every member that is there is yielded and no other: what the table does not list is an error, or ignored in
// a file of a later minor version.
func (s *scanner) record(what string, members ...string) iter.Seq[string] {
	return func(yield func(string) bool) {
		start, due, missing := s.pos, 0, ""
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
		for at, key := range s.object() {
			skip(func(name string) bool { return name >= key })
			if due < len(members) && strings.TrimSuffix(members[due], "?") == key {
				due++
				if s.err != nil || !yield(key) {
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
	s.skip()
}

// skip consumes any value.
func (s *scanner) skip() {
	switch c := s.next(); {
	case c == '{':
		for range s.object() {
			s.skip()
		}
	case c == '[':
		for range s.array() {
			s.skip()
		}
	case c == '"':
		s.str()
	case c == '-' || '0' <= c && c <= '9':
		s.integer()
	default:
		s.unexpected("a value")
	}
}

// str reads a string. It shares memory with the text unless it has escapes.
func (s *scanner) str() string {
	if !s.start('"', "a string") {
		return ""
	}
	s.pos++
	start := s.pos
	for ; s.pos < len(s.text); s.pos++ {
		switch c := s.text[s.pos]; {
		case c == '"':
			s.pos++
			return s.text[start : s.pos-1]
		case c == '\\':
			return s.escaped(start)
		case c < 0x20:
			s.fail(22, s.pos, "character %q without an escape", c)
			return ""
		}
	}
	s.unexpected("the end of a string")
	return ""
}

// escaped reads on in a string that began at start, from its first escape.
func (s *scanner) escaped(start int) string {
	var b strings.Builder
	b.WriteString(s.text[start:s.pos])
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == '"':
			s.pos++
			return b.String()
		case c == '\\':
			r, ok := s.escape()
			if !ok {
				return ""
			}
			b.WriteByte(r)
		case c < 0x20:
			s.fail(22, s.pos, "character %q without an escape", c)
			return ""
		default:
			b.WriteByte(c)
			s.pos++
		}
	}
	s.unexpected("the end of a string")
	return ""
}

// escape reads one escape, which must be the only form of its character.
func (s *scanner) escape() (byte, bool) {
	rest := s.text[s.pos:]
	for c, e := range escapes {
		if e != "" && strings.HasPrefix(rest, e) {
			s.pos += len(e)
			return byte(c), true
		}
	}
	s.fail(22, s.pos, "%q is not the only form of a character", rest[:min(len(rest), 6)])
	return 0, false
}

// integer reads an integer.
func (s *scanner) integer() int64 {
	if s.err != nil {
		return 0
	}
	at := s.pos
	end := at
	for end < len(s.text) && strings.IndexByte("+-.0123456789Ee", s.text[end]) >= 0 {
		end++
	}
	literal := s.text[at:end]
	digits, negative := strings.CutPrefix(literal, "-")
	if literal == "" {
		s.mismatch("an integer")
		return 0
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" || digits[0] == '0' && literal != "0" {
		s.fail(23, at, "number %q, want an integer in its only form", literal[:min(len(literal), 32)])
		return 0
	}
	s.pos = end
	var n int64
	for i := range len(digits) {
		if n = n*10 + int64(digits[i]-'0'); n > maxInteger {
			s.fail(24, at, "number %s, the limit is %d", literal[:min(len(literal), 32)], int64(maxInteger))
			return 0
		}
	}
	if negative {
		n = -n
	}
	return n
}

// escapes has the only form of every character that has an escape.
var escapes = func() (t ['\\' + 1]string) {
	for c := range 0x20 {
		t[c] = fmt.Sprintf(`\u%04x`, c)
	}
	t['"'], t['\\'], t['\b'], t['\f'], t['\n'], t['\r'], t['\t'] = `\"`, `\\`, `\b`, `\f`, `\n`, `\r`, `\t`
	return t
}()

// appendString appends s as a canonical JSON string.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := range len(s) {
		if c := s[i]; c < byte(len(escapes)) && escapes[c] != "" {
			dst = append(dst, s[from:i]...)
			dst = append(dst, escapes[c]...)
			from = i + 1
		}
	}
	return append(append(dst, s[from:]...), '"')
}
