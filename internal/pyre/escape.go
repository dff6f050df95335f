package pyre

import "unicode"

// class reads a set in brackets, behind the opening one.
func (p *parser) class(f flags) *node {
	s := &set{flags: f}
	s.negated = p.accept('^')
	for first := true; p.err == nil; first = false {
		c := p.take()
		if c == ']' && !first {
			break
		}
		lo, category := p.member(c)
		if !p.accept('-') {
			s.add(lo, lo, category)
			continue
		}
		c = p.take()
		if c == ']' {
			s.add(lo, lo, category)
			s.add('-', '-', 0)
			break
		}
		hi, other := p.member(c)
		if category != 0 || other != 0 || hi < lo {
			p.fail("bad character range")
		}
		s.add(lo, hi, 0)
	}
	return &node{op: opSet, set: s}
}

// add adds a range, or a category where that is not 0.
func (s *set) add(lo, hi rune, category byte) {
	if category != 0 {
		s.categories = append(s.categories, category)
		return
	}
	s.spans = append(s.spans, span{lo, hi})
}

// member reads a character of a class, which begins with c, or a category.
func (p *parser) member(c rune) (r rune, category byte) {
	switch {
	case c < 0:
		p.fail("unterminated character set")
	case c != '\\':
		return c, 0
	}
	c = p.take()
	switch c {
	case 'd', 'D', 's', 'S', 'w', 'W':
		return 0, byte(c)
	case 'b':
		return '\b', 0
	case '0', '1', '2', '3', '4', '5', '6', '7':
		return p.octal(c-'0', 2), 0
	case '8', '9':
		p.fail("bad escape")
		return 0, 0
	}
	return p.character(c), 0
}

// octal reads at most n more octal digits.
func (p *parser) octal(value rune, n int) rune {
	for ; n > 0 && isOctal(p.next()); n-- {
		value = 8*value + p.take() - '0'
	}
	if value > 0o377 {
		p.fail("octal escape value outside of range 0-0o377")
	}
	return value
}

func isOctal(c rune) bool { return '0' <= c && c <= '7' }

func isDigit(c rune) bool { return '0' <= c && c <= '9' }

// escape reads what follows a backslash outside of a class.
func (p *parser) escape(f flags) *node {
	c := p.take()
	switch c {
	case 'd', 'D', 's', 'S', 'w', 'W':
		return &node{op: opSet, set: &set{categories: []byte{byte(c)}, flags: f}}
	case 'A', 'Z', 'b', 'B':
		return &node{op: opAt, at: byte(c), flags: f}
	case '0':
		return literal(p.octal(0, 2), f)
	}
	if !isDigit(c) {
		return literal(p.character(c), f)
	}
	group := int(c - '0')
	if second := p.next(); isDigit(second) {
		p.pos++
		if isOctal(c) && isOctal(second) && isOctal(p.next()) {
			return literal(p.octal(8*(c-'0')+second-'0', 1), f)
		}
		group = 10*group + int(second-'0')
	}
	if group >= len(p.groups) {
		p.fail("invalid group reference")
		return nil
	}
	return p.reference(group, f)
}

var controls = map[rune]rune{'a': '\a', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v'}

// character reads an escape that stands for one character; c follows the backslash.
func (p *parser) character(c rune) rune {
	if control, ok := controls[c]; ok {
		return control
	}
	switch c {
	case 'x':
		return p.hex(2)
	case 'u':
		return p.hex(4)
	case 'U':
		return p.hex(8)
	case 'N':
		p.fail(`\N{NAME} is not supported here`)
	}
	switch {
	case c < 0:
		p.fail("bad escape (end of pattern)")
	case c < 0x80 && unicode.IsLetter(c):
		p.fail("bad escape")
	}
	return c
}

// hex reads n hexadecimal digits.
func (p *parser) hex(n int) (value rune) {
	for range n {
		c := p.take()
		switch {
		case isDigit(c):
			c -= '0'
		case 'a' <= c && c <= 'f', 'A' <= c && c <= 'F':
			c = c&^0x20 - 'A' + 10
		default:
			p.fail("incomplete escape")
			return 0
		}
		if value >= 1<<24 {
			p.fail("bad escape")
			return 0
		}
		value = 16*value + c
	}
	if value > unicode.MaxRune {
		p.fail("bad escape")
	}
	return value
}
