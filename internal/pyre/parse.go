package pyre

import (
	"errors"
	"unicode"
)

// parser reads an expression like CPython's Lib/re/_parser.py. Its errors use Python's words.
type parser struct {
	scanner
	flags      flags // of the whole expression
	groups     []extent
	names      map[string]int
	behindFrom int         // inside a look-behind, the first group that it defines; otherwise 0
	conditions map[int]int // groups that conditions refer to, with their positions
	nested     int
}

// errFlags means that global flags were found; the expression is then read again with them.
var errFlags = errors.New("read again")

// maxNesting bounds nested groups. Python's parser runs out of stack between 400 and 500.
const maxNesting = 400

// parse reads a whole expression.
func parse(expr string) (sequence, *parser, error) {
	p := &parser{scanner: scanner{text: []rune(expr)}}
	for {
		p.pos, p.nested, p.behindFrom, p.err = 0, 0, 0, nil
		p.groups = make([]extent, 1)
		p.names, p.conditions = make(map[string]int), make(map[int]int)
		branches := p.alternatives(p.flags, true)
		if p.err == errFlags {
			continue
		}
		if p.pos < len(p.text) {
			p.fail("unbalanced parenthesis")
		}
		for group, pos := range p.conditions {
			if group >= len(p.groups) && p.err == nil {
				p.err = &SyntaxError{pos, "invalid group reference"}
			}
		}
		if p.flags&typeFlags == typeFlags {
			p.fail("ASCII and UNICODE flags are incompatible")
		}
		return sequence{{op: opGroup, branches: branches}}, p, p.err
	}
}

// alternatives reads sequences separated by bars.
func (p *parser) alternatives(f flags, first bool) (branches []sequence) {
	if p.nested++; p.nested > maxNesting {
		p.fail("too many groups within groups")
	}
	for {
		branches = append(branches, p.sequence(f, first && len(branches) == 0))
		if !p.accept('|') {
			p.nested--
			return branches
		}
	}
}

// sequence reads up to a bar, a closing parenthesis or the end.
func (p *parser) sequence(f flags, first bool) (s sequence) {
	for p.err == nil {
		c := p.next()
		if c < 0 || c == '|' || c == ')' {
			break
		}
		p.pos++
		if f&verbose != 0 && p.skipVerbose(c) {
			continue
		}
		switch c {
		case '\\':
			s = append(s, p.escape(f))
		case '[':
			s = append(s, p.class(f))
		case '*', '+', '?', '{':
			s = p.repeat(c, s, f)
		case '.':
			any := &set{negated: true}
			if f&dotAll == 0 {
				any.spans = []span{{'\n', '\n'}}
			}
			s = append(s, &node{op: opSet, set: any})
		case '^', '$':
			s = append(s, &node{op: opAt, at: byte(c), flags: f})
		case '(':
			if n := p.group(f, first && len(s) == 0); n != nil {
				s = append(s, n)
			}
		default:
			s = append(s, literal(c, f))
		}
	}
	return s
}

func literal(c rune, f flags) *node {
	return &node{op: opSet, set: &set{spans: []span{{c, c}}, flags: f}}
}

// repeat makes the last node of a sequence a repeat. c is the repeat character.
func (p *parser) repeat(c rune, s sequence, f flags) sequence {
	from, least, most := p.pos, int64(0), infinite
	switch c {
	case '?':
		most = 1
	case '+':
		least = 1
	case '{':
		var ok bool
		if least, most, ok = p.bounds(); !ok {
			p.pos = from
			return append(s, literal('{', f))
		}
	}
	if p.err != nil {
		return s
	}
	if len(s) == 0 || s[len(s)-1].op == opAt {
		p.fail("nothing to repeat")
		return s
	}
	last := s[len(s)-1]
	if last.op == opRepeat {
		p.fail("multiple repeat")
		return s
	}
	r := &node{op: opRepeat, min: least, max: most, branches: []sequence{{last}}}
	if last.bare {
		r.branches = last.branches
	}
	if p.accept('?') {
		r.mode = lazy
	} else if p.accept('+') {
		r.mode = possessive
	}
	b := r.branches
	r.simple = len(b) == 1 && len(b[0]) == 1 && b[0][0].op == opSet
	s[len(s)-1] = r
	return s
}

// group reads the rest of a group after its opening parenthesis. It returns nil for comments and
// flags, which match nothing.
func (p *parser) group(f flags, first bool) *node {
	n := &node{op: opGroup, flags: f}
	name := ""
	if !p.accept('?') {
		return p.capture(n, name, f)
	}
	switch c := p.take(); {
	case c == 'P' && p.accept('<'):
		if name = p.name('>'); p.err == nil && !isIdentifier(name) {
			p.fail("bad character in group name")
		}
		return p.capture(n, name, f)
	case c == 'P' && p.accept('='):
		return p.namedReference(f)
	case c == ':':
		n.bare = true
	case c == '#':
		for c := p.take(); c != ')'; c = p.take() {
			if c < 0 {
				p.fail("missing ), unterminated comment")
				break
			}
		}
		return nil
	case c == '=', c == '!', c == '<' && (p.next() == '=' || p.next() == '!'):
		return p.look(c, f)
	case c == '(':
		return p.conditional(f)
	case c == '>':
		n.op = opAtomic
	case c == '-' || flagOf[c] != 0 || c == 'L':
		add, del, global := p.readFlags(c)
		if global {
			if !first {
				p.fail("global flags not at the start of the expression")
			}
			if p.err == nil && p.flags|add != p.flags {
				p.flags |= add
				p.err = errFlags
			}
			return nil
		}
		f = f.combine(add, del)
		n.flags, n.bare = f, add|del == 0
	default:
		p.fail("unknown extension of a group")
	}
	n.branches = p.alternatives(f, false)
	p.close()
	return n
}

func (p *parser) close() {
	if !p.accept(')') {
		p.fail("missing ), unterminated subpattern")
	}
}

// capture reads a numbered group, which may also have a name.
func (p *parser) capture(n *node, name string, f flags) *node {
	n.group = len(p.groups)
	p.groups = append(p.groups, extent{})
	if _, taken := p.names[name]; taken {
		p.fail("redefinition of group name")
	}
	if name != "" {
		p.names[name] = n.group
	}
	n.branches = p.alternatives(f, false)
	p.close()
	if p.err == nil {
		w := widest(n.branches, p.groups)
		p.groups[n.group] = extent{w.lo, w.hi, true}
	}
	return n
}

func isIdentifier(name string) bool {
	for i, c := range name {
		start := c == '_' || unicode.In(c, unicode.L, unicode.Nl, unicode.Other_ID_Start)
		if !start && (i == 0 || !unicode.In(c, unicode.Mn, unicode.Mc, unicode.Nd, unicode.Pc, unicode.Other_ID_Continue)) {
			return false
		}
	}
	return name != ""
}

func (p *parser) namedReference(f flags) *node {
	name := p.name(')')
	group, known := p.names[name]
	if p.err == nil && !isIdentifier(name) {
		p.fail("bad character in group name")
	}
	if !known {
		p.fail("unknown group name")
	}
	return p.reference(group, f)
}

// reference makes a reference to a group, which must be closed.
func (p *parser) reference(group int, f flags) *node {
	if p.err == nil && !p.groups[group].closed {
		p.fail("cannot refer to an open group")
	}
	p.checkBehind(group)
	return &node{op: opBackref, group: group, flags: f}
}

// checkBehind refuses a group that the enclosing look-behind defines.
func (p *parser) checkBehind(group int) {
	if p.behindFrom == 0 || p.err != nil {
		return
	}
	if group >= len(p.groups) || !p.groups[group].closed {
		p.fail("cannot refer to an open group")
	}
	if group >= p.behindFrom {
		p.fail("cannot refer to group defined in the same lookbehind subpattern")
	}
}

// look reads a look-ahead or look-behind. c is the character after the question mark.
func (p *parser) look(c rune, f flags) *node {
	n := &node{op: opLook, behind: c == '<', flags: f}
	before := p.behindFrom
	if n.behind {
		c = p.take()
		if before == 0 {
			p.behindFrom = len(p.groups)
		}
	}
	n.negated = c == '!'
	n.branches = p.alternatives(f, false)
	if n.behind {
		p.behindFrom = before
	}
	p.close()
	if n.behind && p.err == nil {
		w := widest(n.branches, p.groups)
		if w.lo != w.hi {
			p.fail("look-behind requires fixed-width pattern")
		}
		n.width = w.lo
	}
	return n
}

// conditional reads (?(GROUP)yes|no).
func (p *parser) conditional(f flags) *node {
	name := p.name(')')
	group := 0
	if isIdentifier(name) {
		var known bool
		if group, known = p.names[name]; !known {
			p.fail("unknown group name")
		}
	} else if group = groupNumber(name); group == 0 {
		p.fail("bad group number")
	}
	p.checkBehind(group)
	if _, ok := p.conditions[group]; !ok {
		p.conditions[group] = p.pos
	}
	n := &node{op: opConditional, group: group, flags: f}
	if p.nested++; p.nested > maxNesting {
		p.fail("too many groups within groups")
	}
	n.branches = []sequence{p.sequence(f, false), nil}
	if p.accept('|') {
		n.branches[1] = p.sequence(f, false)
		if p.next() == '|' {
			p.fail("conditional backref with more than two branches")
		}
	}
	p.nested--
	p.close()
	return n
}

// groupNumber reads a decimal number; 0 means none.
func groupNumber(name string) (n int) {
	for _, c := range name {
		if c < '0' || c > '9' || n > 1<<20 {
			return 0
		}
		n = 10*n + int(c-'0')
	}
	return n
}

// readFlags reads (?add-del: or (?add). c is its first character.
func (p *parser) readFlags(c rune) (add, del flags, global bool) {
	for c != '-' {
		switch {
		case c == 'L':
			p.fail("bad inline flags: cannot use 'L' flag with a str pattern")
		case flagOf[c] == 0:
			p.fail("missing -, : or )")
		}
		add |= flagOf[c]
		if add&typeFlags == typeFlags {
			p.fail("bad inline flags: flags 'a', 'u' and 'L' are incompatible")
		}
		switch c = p.take(); c {
		case ')':
			return add, 0, true
		case ':':
			return add, 0, false
		}
		if p.err != nil {
			return add, 0, false
		}
	}
	for c = p.take(); c != ':' || del == 0; c = p.take() {
		switch {
		case c == 'L' || flagOf[c]&typeFlags != 0:
			p.fail("bad inline flags: cannot turn off flags 'a', 'u' and 'L'")
		case flagOf[c] == 0:
			p.fail("missing flag")
		}
		if p.err != nil {
			return add, del, false
		}
		del |= flagOf[c]
	}
	if add&del != 0 {
		p.fail("bad inline flags: flag turned on and off")
	}
	return add, del, false
}
