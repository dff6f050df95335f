package jsontext

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Str reads a string. Without escapes it is a part of the text.
func (s *Scanner) Str() string {
	if !s.start('"', `'"' of a string`) {
		return ""
	}
	start := s.pos + 1
	for i := start; i < len(s.text); i++ {
		switch c := s.text[i]; {
		case c == '"':
			s.pos = i + 1
			return s.valid(s.text[start:i])
		case c == '\\':
			s.pos = i
			return s.escaped(start)
		case c < 0x20:
			s.control(i)
			return ""
		}
	}
	s.endless(start)
	return ""
}

// escaped reads the rest of a string that began at start, from its first escape.
func (s *Scanner) escaped(start int) string {
	var b strings.Builder
	b.WriteString(s.text[start:s.pos])
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == '"':
			s.pos++
			return s.valid(b.String())
		case c == '\\':
			r, ok := s.escape()
			if !ok {
				return ""
			}
			b.WriteRune(r)
		case c < 0x20:
			s.control(s.pos)
			return ""
		default:
			b.WriteByte(c)
			s.pos++
		}
	}
	s.endless(start)
	return ""
}

// valid replaces invalid UTF-8 by U+FFFD, byte by byte. Only Python texts can contain it.
func (s *Scanner) valid(str string) string {
	if s.form == Python && !utf8.ValidString(str) {
		return string([]rune(str))
	}
	return str
}

func (s *Scanner) control(at int) {
	s.Failf(Text, at, "the control character %q is not escaped", s.text[at])
}

func (s *Scanner) endless(start int) {
	s.Failf(Syntax, start-1, "the string has no end")
}

// escape reads one escape, or two that form a surrogate pair.
func (s *Scanner) escape() (rune, bool) {
	at, rest := s.pos, s.text[s.pos:]
	if s.form == Canonical {
		return s.onlyEscape(rest)
	}
	if len(rest) < 2 {
		s.Failf(Syntax, at, "the string has no end")
		return 0, false
	}
	if i := strings.IndexByte(`"\/bfnrt`, rest[1]); i >= 0 {
		s.pos += 2
		return rune("\"\\/\b\f\n\r\t"[i]), true
	}
	r, ok := hex4(rest)
	if ok {
		s.pos += 6
	}
	if ok && utf16.IsSurrogate(r) {
		low, isLow := hex4(s.text[s.pos:])
		switch r = utf16.DecodeRune(r, low); {
		case isLow && r != utf8.RuneError:
			s.pos += 6
		case s.form == Strict:
			ok = false
		}
	}
	if !ok {
		s.Failf(Text, at, "invalid escape, or half a surrogate pair")
	}
	return r, ok
}

// hex4 parses \u and four hexadecimal digits.
func hex4(text string) (rune, bool) {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(text[2:6], 16, 16)
	return rune(n), err == nil
}

// onlyEscape reads one escape of a canonical text. It must be the only form of its character.
func (s *Scanner) onlyEscape(rest string) (rune, bool) {
	for c, e := range escapes {
		if e != "" && strings.HasPrefix(rest, e) {
			s.pos += len(e)
			return rune(c), true
		}
	}
	s.Failf(Text, s.pos, "%q is not the only form of a character", rest[:min(len(rest), 6)])
	return 0, false
}

// escapes maps every character that canonical texts escape to its only form.
var escapes = func() (t ['\\' + 1]string) {
	for c := range 0x20 {
		t[c] = fmt.Sprintf(`\u%04x`, c)
	}
	t['"'], t['\\'], t['\b'], t['\f'], t['\n'], t['\r'], t['\t'] = `\"`, `\\`, `\b`, `\f`, `\n`, `\r`, `\t`
	return t
}()

// AppendCanonical appends a string in canonical form.
func AppendCanonical(dst []byte, str string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := range len(str) {
		if c := str[i]; c < byte(len(escapes)) && escapes[c] != "" {
			dst = append(dst, str[from:i]...)
			dst = append(dst, escapes[c]...)
			from = i + 1
		}
	}
	return append(append(dst, str[from:]...), '"')
}
