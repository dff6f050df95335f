package pyre

// class reads a set in brackets, after the opening bracket.
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

// add adds a range, or a category if that is not 0.
func (s *set) add(lo, hi rune, category byte) {
	if category != 0 {
		s.categories = append(s.categories, category)
		return
	}
	s.spans = append(s.spans, span{lo, hi})
}

// escape reads the characters after a backslash outside a class.
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
