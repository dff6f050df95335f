package pyre

import "unicode"

// scanner reads the characters of an expression, with escapes, numbers and names. The first error
// sticks, and nothing more is read.
type scanner struct {
	text []rune
	pos  int
	err  error
}

func (s *scanner) fail(format string) {
	if s.err == nil {
		s.err = &SyntaxError{s.pos, format}
	}
}

// next returns the next character without consuming it, or −1 at the end.
func (s *scanner) next() rune {
	if s.err != nil || s.pos >= len(s.text) {
		return -1
	}
	return s.text[s.pos]
}

// take consumes and returns the next character.
func (s *scanner) take() rune {
	c := s.next()
	if c >= 0 {
		s.pos++
	}
	return c
}

// accept consumes the next character if it is c.
func (s *scanner) accept(c rune) bool {
	if s.next() == c {
		s.pos++
		return true
	}
	return false
}

// skipVerbose skips white space and comments under the flag x.
func (s *scanner) skipVerbose(c rune) bool {
	switch c {
	case ' ', '\t', '\n', '\r', '\v', '\f':
		return true
	case '#':
		for c := s.take(); c >= 0 && c != '\n'; c = s.take() {
		}
		return true
	}
	return false
}

// number reads digits; too large a number becomes infinite.
func (s *scanner) number() (n int64, ok bool) {
	for c := s.next(); '0' <= c && c <= '9'; c = s.next() {
		n, ok = min(10*n+int64(c-'0'), infinite), true
		s.pos++
	}
	return n, ok
}

// bounds reads {m,n} after the brace. ok is false if the brace is a literal.
func (s *scanner) bounds() (least, most int64, ok bool) {
	if s.next() == '}' {
		return 0, 0, false
	}
	least, hasLeast := s.number()
	most, hasMost := least, hasLeast
	if s.accept(',') {
		most, hasMost = s.number()
	}
	if !s.accept('}') {
		return 0, 0, false
	}
	if least >= infinite || hasMost && most >= infinite {
		s.fail("the repetition number is too large")
	}
	if !hasMost {
		most = infinite
	}
	if most < least {
		s.fail("min repeat greater than max repeat")
	}
	return least, most, true
}

// name reads up to a terminator.
func (s *scanner) name(end rune) string {
	from := s.pos
	for c := s.take(); c != end; c = s.take() {
		if c < 0 {
			s.fail("missing " + string(end) + ", unterminated name")
			return ""
		}
	}
	if s.pos-1 == from {
		s.fail("missing group name")
	}
	return string(s.text[from : s.pos-1])
}

// member reads one character of a class, beginning with c, or a category.
func (s *scanner) member(c rune) (r rune, category byte) {
	switch {
	case c < 0:
		s.fail("unterminated character set")
	case c != '\\':
		return c, 0
	}
	c = s.take()
	switch c {
	case 'd', 'D', 's', 'S', 'w', 'W':
		return 0, byte(c)
	case 'b':
		return '\b', 0
	case '0', '1', '2', '3', '4', '5', '6', '7':
		return s.octal(c-'0', 2), 0
	case '8', '9':
		s.fail("bad escape")
		return 0, 0
	}
	return s.character(c), 0
}

// character reads an escape for a single character. c follows the backslash.
func (s *scanner) character(c rune) rune {
	if control, ok := controls[c]; ok {
		return control
	}
	switch c {
	case 'x':
		return s.hex(2)
	case 'u':
		return s.hex(4)
	case 'U':
		return s.hex(8)
	case 'N':
		s.fail(`\N{NAME} is not supported here`)
	}
	switch {
	case c < 0:
		s.fail("bad escape (end of pattern)")
	case c < 0x80 && unicode.IsLetter(c):
		s.fail("bad escape")
	}
	return c
}

// octal reads up to n more octal digits.
func (s *scanner) octal(value rune, n int) rune {
	for ; n > 0 && isOctal(s.next()); n-- {
		value = 8*value + s.take() - '0'
	}
	if value > 0o377 {
		s.fail("octal escape value outside of range 0-0o377")
	}
	return value
}

// hex reads n hexadecimal digits.
func (s *scanner) hex(n int) (value rune) {
	for range n {
		c := s.take()
		switch {
		case isDigit(c):
			c -= '0'
		case 'a' <= c && c <= 'f', 'A' <= c && c <= 'F':
			c = c&^0x20 - 'A' + 10
		default:
			s.fail("incomplete escape")
			return 0
		}
		if value >= 1<<24 {
			s.fail("bad escape")
			return 0
		}
		value = 16*value + c
	}
	if value > unicode.MaxRune {
		s.fail("bad escape")
	}
	return value
}

func isOctal(c rune) bool { return '0' <= c && c <= '7' }

func isDigit(c rune) bool { return '0' <= c && c <= '9' }

var controls = map[rune]rune{'a': '\a', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v'}
