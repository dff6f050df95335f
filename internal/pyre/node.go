package pyre

// op is the kind of a node in a parsed expression.
type op uint8

const (
	opSet         op = iota // one character of set
	opAt                    // an assertion about the position: at
	opGroup                 // branches; captures if group > 0
	opAtomic                // branches; the first match is final
	opLook                  // branches ahead or behind, perhaps negated
	opRepeat                // branches, min to max times
	opBackref               // the text that group matched
	opConditional           // branches[0] if group has matched, else branches[1]
)

// flags are the flags in force for a part of an expression.
type flags uint8

const (
	ignoreCase flags = 1 << iota // i
	multiLine                    // m
	dotAll                       // s
	verbose                      // x
	ascii                        // a
	unicoded                     // u, the default
)

var flagOf = map[rune]flags{'i': ignoreCase, 'm': multiLine, 's': dotAll, 'x': verbose, 'a': ascii, 'u': unicoded}

const typeFlags = ascii | unicoded

// combine returns the flags inside (?add-del:…).
func (f flags) combine(add, del flags) flags {
	if add&typeFlags != 0 {
		f &^= typeFlags
	}
	return (f | add) &^ del
}

// mode is how eagerly a repeat continues.
type mode uint8

const (
	greedy mode = iota
	lazy
	possessive
)

// infinite is the count of an unbounded repeat, and the largest width, as in Python. It does not
// fit an int on every platform, so counts and widths are int64.
const infinite int64 = 1<<32 - 1

// node is a part of an expression: an element of a sequence during parsing, and a state of the
// matcher once link has set next.
type node struct {
	op       op
	at       byte // opAt: ^ $ A Z b B
	mode     mode // opRepeat
	behind   bool // opLook
	negated  bool // opLook
	simple   bool // opRepeat of a single set
	bare     bool // opGroup without number or flags: a repeat takes its content
	flags    flags
	group    int
	min, max int64 // opRepeat
	width    int64 // opLook behind: the number of characters
	set      *set
	branches []sequence

	next  *node   // the successor; nil at the end of the expression, or of the branches of a look-around or an atomic group
	heads []*node // the first node of each branch
	loop  int     // opRepeat: its index
}

// sequence is a list of nodes in order.
type sequence []*node

// width returns the least and the greatest number of characters that a sequence matches.
func (s sequence) width(groups []extent) (w extent) {
	for _, n := range s {
		x := n.extent(groups)
		w.lo, w.hi = w.lo+x.lo, w.hi+x.hi
	}
	return extent{lo: min(w.lo, infinite-1), hi: min(w.hi, infinite)}
}

// extent is a least and a greatest width. A group still open has none.
type extent struct {
	lo, hi int64
	closed bool
}

func (n *node) extent(groups []extent) extent {
	switch n.op {
	case opSet:
		return extent{lo: 1, hi: 1}
	case opBackref:
		return extent{lo: groups[n.group].lo, hi: groups[n.group].hi}
	case opGroup, opAtomic, opConditional:
		return widest(n.branches, groups)
	case opRepeat:
		w := widest(n.branches, groups)
		return extent{lo: times(w.lo, n.min), hi: times(w.hi, n.max)}
	}
	return extent{}
}

func widest(branches []sequence, groups []extent) extent {
	w := extent{lo: infinite - 1}
	for _, b := range branches {
		x := b.width(groups)
		w.lo, w.hi = min(w.lo, x.lo), max(w.hi, x.hi)
	}
	return w
}

// times returns the product, or infinite if it is larger.
func times(a, b int64) int64 {
	if a > 0 && b > infinite/a {
		return infinite
	}
	return a * b
}
