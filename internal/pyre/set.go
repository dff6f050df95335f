package pyre

import (
	"slices"
	"unicode"
)

// span is a range of characters, both ends included.
type span struct{ lo, hi rune }

// set is a set of characters: a class in brackets, a dot, or a single character.
type set struct {
	spans      []span
	categories []byte // d, D, s, S, w, W
	negated    bool
	flags      flags // the flags in force at the set
}

// has reports whether the set contains r.
func (s *set) has(r rune) bool {
	if s.flags&ignoreCase == 0 {
		if len(s.spans) == 1 && len(s.categories) == 0 {
			return (s.spans[0].lo <= r && r <= s.spans[0].hi) != s.negated
		}
		return s.hasExactly(r) != s.negated
	}
	if s.hasExactly(r) {
		return !s.negated
	}
	for _, mate := range mates(r, s.flags&ascii != 0) {
		if s.hasExactly(mate) {
			return !s.negated
		}
	}
	return s.negated
}

// hasExactly is has without negation and the case flag.
func (s *set) hasExactly(r rune) bool {
	for _, x := range s.spans {
		if x.lo <= r && r <= x.hi {
			return true
		}
	}
	for _, c := range s.categories {
		if inCategory(c, r, s.flags&ascii != 0) {
			return true
		}
	}
	return false
}

// inCategory implements \d, \s, \w and their opposites.
func inCategory(c byte, r rune, ascii bool) bool {
	switch c {
	case 'd':
		return '0' <= r && r <= '9' || !ascii && r >= 0x80 && unicode.Is(unicode.Nd, r)
	case 's':
		return isSpace(r, ascii)
	case 'w':
		return isWord(r, ascii)
	}
	return !inCategory(c|0x20, r, ascii)
}

// isSpace is str.isspace: white space by category or by bidirectional class.
func isSpace(r rune, ascii bool) bool {
	switch {
	case r == ' ' || '\t' <= r && r <= '\r':
		return true
	case ascii:
		return false
	}
	return 0x1c <= r && r <= 0x1f || r >= 0x80 && unicode.IsSpace(r)
}

// isWord is str.isalnum, or an underscore.
func isWord(r rune, ascii bool) bool {
	switch {
	case r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z':
		return true
	case ascii || r < 0x80:
		return false
	}
	return unicode.In(r, unicode.L, unicode.N)
}

// twins are pairs that Python treats as equal when it ignores case, although Unicode's simple
// folding does not.
var twins = func() map[rune][]rune {
	pairs := make(map[rune][]rune)
	for _, p := range [][2]rune{{0x390, 0x1fd3}, {0x3b0, 0x1fe3}, {0xfb05, 0xfb06}} {
		pairs[p[0]], pairs[p[1]] = p[1:], p[:1]
	}
	return pairs
}()

// mates returns the other characters that equal r in Python when case is ignored.
func mates(r rune, ascii bool) []rune {
	if ascii {
		switch {
		case 'a' <= r && r <= 'z':
			return []rune{r - 0x20}
		case 'A' <= r && r <= 'Z':
			return []rune{r + 0x20}
		}
		return nil
	}
	switch r { // Python counts the dotted capital I and the dotless small i as i
	case 'i', 'I', 0x130, 0x131:
		return []rune{'i', 'I', 0x130, 0x131}
	}
	all := slices.Clone(twins[r])
	for m := unicode.SimpleFold(r); m != r; m = unicode.SimpleFold(m) {
		all = append(all, m)
	}
	return all
}

// lower is Python's mapping for comparing with the text of a group when case is ignored.
func lower(r rune, f flags) rune {
	if f&ascii != 0 && r >= 0x80 {
		return r
	}
	return unicode.ToLower(r)
}
