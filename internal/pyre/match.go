package pyre

// Regexp is a compiled expression. Several goroutines may use it at once.
type Regexp struct {
	start  *node
	groups int
	loops  int
}

// Compile parses an expression. If Python rejects it, the error is a *SyntaxError.
func Compile(expr string) (*Regexp, error) {
	s, p, err := parse(expr)
	if err != nil {
		return nil, err
	}
	r := &Regexp{groups: len(p.groups)}
	r.start = r.link(s, nil)
	return r, nil
}

// link sets the successor of each node of a sequence and returns the first node.
func (r *Regexp) link(s sequence, next *node) *node {
	for i := len(s) - 1; i >= 0; i-- {
		n := s[i]
		n.next = next
		after := next // successor of the branches
		switch n.op {
		case opGroup:
			if n.group > 0 {
				after = &node{op: opEnd, group: n.group, next: next}
			}
		case opRepeat:
			n.loop = r.loops
			r.loops++
			after = &node{op: opUntil, loop: n.loop, next: n}
			if n.mode == possessive {
				after = nil
			}
		case opAtomic, opLook:
			after = nil
		}
		n.heads = make([]*node, len(n.branches))
		for j, b := range n.branches {
			n.heads[j] = r.link(b, after)
		}
		next = n
	}
	return next
}

// States that exist only in the matcher.
const (
	opEnd   op = 100 + iota // the end of a captured group
	opUntil                 // the end of one iteration of the repeat in next
)

// Match reports whether the expression matches at the start of the text, like re.match. The match
// need not reach the end of the text. Match spends steps of the budget and returns the budget's
// error when it ends.
func (r *Regexp) Match(text string, b *Budget) (bool, error) {
	m := matcher{text: []rune(text), budget: b, groups: make([]int, 2*r.groups), loops: make([]turn, r.loops)}
	for i := range m.groups {
		m.groups[i] = -1
	}
	ok := m.run(r.start, 0)
	b.left += m.left
	return ok && m.err == nil, m.err
}

// turn is the state of a repeat: how many iterations are done, and where the last one began.
type turn struct{ count, last int }

// matcher is the state of one match. If run changes it and then returns false, run restores it.
type matcher struct {
	text   []rune
	budget *Budget
	left   int64 // steps taken from the budget and not used yet
	groups []int // start and end of each group; −1 means unmatched
	loops  []turn
	end    int // where the last successful run ended
	depth  int
	err    error
}

// maxDepth bounds the recursion of run, and with it the stack.
const maxDepth = 1 << 17

// spend uses steps. It takes many at a time from the budget.
func (m *matcher) spend(steps int) bool {
	if m.err != nil {
		return false
	}
	if m.left -= int64(steps); m.left >= 0 {
		return true
	}
	short := -m.left
	m.left = 0
	if m.err = m.budget.Spend(short); m.err == nil {
		m.left = min(ctxSteps, m.budget.left)
		m.budget.left -= m.left
	}
	return m.err == nil
}

// run matches from a node to the end of the expression.
func (m *matcher) run(n *node, pos int) bool {
	if m.depth++; m.depth > maxDepth {
		m.err = ErrBudget
	}
	ok := m.walk(n, pos)
	m.depth--
	return ok
}

// walk follows the nodes that have a single successor.
func (m *matcher) walk(n *node, pos int) bool {
	for n != nil {
		if !m.spend(1) {
			return false
		}
		switch n.op {
		case opSet:
			if pos >= len(m.text) || !n.set.has(m.text[pos]) {
				return false
			}
			pos++
		case opAt:
			if !m.at(n, pos) {
				return false
			}
		case opBackref:
			from, to := m.groups[2*n.group], m.groups[2*n.group+1]
			if from < 0 || to < from || !m.same(n, from, to, pos) {
				return false
			}
			pos += to - from
		case opConditional:
			branch := n.heads[1]
			if from, to := m.groups[2*n.group], m.groups[2*n.group+1]; from >= 0 && to >= from {
				branch = n.heads[0]
			}
			n = branch
			continue
		case opEnd:
			return m.set(2*n.group+1, pos, n.next)
		case opGroup:
			if n.group > 0 {
				old := m.groups[2*n.group]
				m.groups[2*n.group] = pos
				if m.any(n.heads, pos) {
					return true
				}
				m.groups[2*n.group] = old
				return false
			}
			last := len(n.heads) - 1
			if last > 0 && m.any(n.heads[:last], pos) {
				return true
			}
			n = n.heads[last]
			continue
		case opAtomic, opLook:
			return m.apart(n, pos)
		case opRepeat:
			return m.repeat(n, pos)
		case opUntil:
			return m.until(n.next, pos)
		}
		n = n.next
	}
	m.end = pos
	return m.err == nil
}

// any tries the branches in order.
func (m *matcher) any(heads []*node, pos int) bool {
	for _, head := range heads {
		if m.run(head, pos) {
			return true
		}
	}
	return false
}

// set records one end of a group and continues.
func (m *matcher) set(i, pos int, next *node) bool {
	old := m.groups[i]
	m.groups[i] = pos
	if m.run(next, pos) {
		return true
	}
	m.groups[i] = old
	return false
}

// apart matches the branches of a look-around or an atomic group on their own, and then the rest.
func (m *matcher) apart(n *node, pos int) bool {
	start := pos
	if n.behind {
		start = int(max(-1, int64(pos)-n.width))
	}
	before := append([]int(nil), m.groups...)
	found := start >= 0 && m.any(n.heads, start)
	if m.err != nil || found == n.negated {
		copy(m.groups, before)
		return false
	}
	if n.op == opAtomic {
		pos = m.end
	}
	if m.run(n.next, pos) {
		return true
	}
	copy(m.groups, before)
	return false
}

// repeat starts a repeat.
func (m *matcher) repeat(n *node, pos int) bool {
	if n.simple {
		return m.repeatSet(n, pos)
	}
	if n.mode == possessive {
		return m.repeatApart(n, pos)
	}
	old := m.loops[n.loop]
	m.loops[n.loop] = turn{0, -1}
	if m.until(n, pos) {
		return true
	}
	m.loops[n.loop] = old
	return false
}

// until decides, between two iterations of a repeat, whether another iteration or the rest comes
// next. An iteration that matched nothing is the last one.
func (m *matcher) until(n *node, pos int) bool {
	t := m.loops[n.loop]
	again := func(last int) bool {
		m.loops[n.loop] = turn{t.count + 1, last}
		if m.any(n.heads, pos) {
			return true
		}
		m.loops[n.loop] = t
		return false
	}
	if int64(t.count) < n.min {
		return again(t.last)
	}
	more := (n.max == infinite || int64(t.count) < n.max) && pos != t.last
	if n.mode == lazy {
		return m.run(n.next, pos) || more && again(pos)
	}
	return more && again(pos) || m.run(n.next, pos)
}

// repeatSet repeats one character of a set.
func (m *matcher) repeatSet(n *node, pos int) bool {
	s := n.branches[0][0].set
	if n.mode == lazy {
		for count := int64(0); m.spend(1); count++ {
			if count >= n.min && m.run(n.next, pos) {
				return true
			}
			if count >= n.max || pos >= len(m.text) || !s.has(m.text[pos]) {
				break
			}
			pos++
		}
		return false
	}
	end := pos
	for end < len(m.text) && int64(end-pos) < n.max && s.has(m.text[end]) {
		end++
	}
	if !m.spend(end - pos) {
		return false
	}
	if n.mode == possessive {
		return int64(end-pos) >= n.min && m.run(n.next, end)
	}
	for ; int64(end-pos) >= n.min && m.spend(1); end-- {
		if n.next != nil && n.next.op == opSet && (end >= len(m.text) || !n.next.set.has(m.text[end])) {
			continue
		}
		if m.run(n.next, end) {
			return true
		}
	}
	return false
}

// repeatApart runs a possessive repeat: each iteration keeps its first match.
func (m *matcher) repeatApart(n *node, pos int) bool {
	before := append([]int(nil), m.groups...)
	count, last := int64(0), -1
	for (n.max == infinite || count < n.max) && (count < n.min || pos != last) && m.spend(1) {
		kept := append([]int(nil), m.groups...)
		if !m.any(n.heads, pos) {
			copy(m.groups, kept)
			break
		}
		if count >= n.min {
			last = pos
		}
		pos = m.end
		count++
	}
	if m.err == nil && count >= n.min && m.run(n.next, pos) {
		return true
	}
	copy(m.groups, before)
	return false
}

// same reports whether the text at pos equals the text of a group.
func (m *matcher) same(n *node, from, to, pos int) bool {
	if to-from > len(m.text)-pos || !m.spend(to-from) {
		return false
	}
	for i := range to - from {
		a, b := m.text[from+i], m.text[pos+i]
		if a != b && (n.flags&ignoreCase == 0 || lower(a, n.flags) != lower(b, n.flags)) {
			return false
		}
	}
	return true
}

// at reports whether the assertion of a node holds at a position.
func (m *matcher) at(n *node, pos int) bool {
	multi := n.flags&multiLine != 0
	switch n.at {
	case 'A':
		return pos == 0
	case '^':
		return pos == 0 || multi && m.text[pos-1] == '\n'
	case 'Z':
		return pos == len(m.text)
	case '$':
		return pos == len(m.text) || m.text[pos] == '\n' && (multi || pos == len(m.text)-1)
	}
	if len(m.text) == 0 { // as in CPython, neither \b nor \B matches an empty text
		return false
	}
	word := func(i int) bool {
		return i >= 0 && i < len(m.text) && isWord(m.text[i], n.flags&ascii != 0)
	}
	return (word(pos-1) != word(pos)) == (n.at == 'b')
}
