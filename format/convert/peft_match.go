package convert

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/pyre"
)

// This file matches the keys of rank_pattern and alpha_pattern with the names of modules.

// patternSteps bounds the cost of all patterns of a configuration, over all keys and modules. 1,000
// ordinary expressions on 1,000 modules take 110 million steps.
const patternSteps = 1 << 28

// Limits of one pattern. An adapter has at most one key for each module.
const (
	maxPatternKeys     = 100_000
	maxPatternKeyBytes = 1 << 16
)

// pattern is rank_pattern or alpha_pattern: regular expressions for module names. Their order in
// the file decides which one wins. PEFT sorts the keys when it saves, so overlapping keys may give
// another result after loading than they gave in training.
type pattern []patternEntry

type patternEntry struct {
	key   string
	value float64
}

// patterns holds both patterns of a configuration, and their results for the adapter's modules.
type patterns struct {
	rank, alpha pattern
	era         patternEra
	modules     []string // the modules whose entries are looked up together
	tables      [2]patternTable
	budget      *pyre.Budget // the allowed cost; set before any match
}

// UnmarshalJSON keeps the order of the keys. A repeated key keeps its first place and takes its
// last value, as in a Python dict.
func (p *pattern) UnmarshalJSON(text []byte) error {
	*p = nil
	s := jsontext.New(string(text), jsontext.Python)
	switch {
	case s.Word("null"):
		return nil
	case s.Next() != '{':
		return fmt.Errorf("got %s, want an object", text)
	}
	at := make(map[string]int)
	for _, key := range s.Object() {
		var value *float64
		raw := s.Raw()
		if jsontext.Decode([]byte(raw), &value) != nil || value == nil {
			return fmt.Errorf("the value of %q is %s, want a number", key, raw)
		}
		if i, again := at[key]; again {
			(*p)[i].value = *value
			continue
		}
		at[key] = len(*p)
		*p = append(*p, patternEntry{key: key, value: *value})
	}
	return s.Err()
}

// check refuses patterns that are too long, and invalid ranks.
func (ps *patterns) check() error {
	for _, p := range []pattern{ps.rank, ps.alpha} {
		if len(p) > maxPatternKeys {
			return fault.New(fault.Limit, "rank_pattern or alpha_pattern has %d keys, the limit is %d", len(p), maxPatternKeys)
		}
	}
	for _, e := range ps.rank {
		if !(e.value >= 1 && e.value <= maxRank) || e.value != math.Trunc(e.value) {
			return fault.New(fault.Corrupt, "rank_pattern gives %q the rank %v, want an integer from 1 to %d", e.key, e.value, maxRank)
		}
	}
	return nil
}

// matcher matches one key by the rule of an era.
type matcher struct {
	era    patternEra
	key    string
	glob   glob // nil if the key needs the regular expression engine
	regexp *pyre.Regexp
	steps  *pyre.Budget
}

func (ps *patterns) matcher(era patternEra, key string) (*matcher, error) {
	if len(key) > maxPatternKeyBytes {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", len(key), maxPatternKeyBytes)
	}
	m := &matcher{era: era, key: key, glob: parseGlob(key), steps: ps.budget}
	if m.glob != nil {
		return m, nil
	}
	return m, m.compile()
}

func (m *matcher) compile() (err error) {
	m.regexp, err = pyre.Compile(m.era.expression(m.key))
	return errors.Join(err, m.steps.Spend(int64(len(m.key))))
}

// matches reports whether the key matches a module. A key of literals and .* needs no engine,
// unless the module's name has a line break or characters outside ASCII.
func (m *matcher) matches(module string) (bool, error) {
	if m.glob != nil && strings.IndexFunc(module, func(r rune) bool { return r == '\n' || r >= utf8.RuneSelf }) < 0 {
		return m.glob.matches(m.era, module), m.steps.Spend(int64(1 + (len(m.glob)-1)*len(module)/8))
	}
	if m.regexp == nil {
		if err := m.compile(); err != nil {
			return false, err
		}
	}
	return m.regexp.Match(module, m.steps)
}

// patternHit is the result of one pattern for one module: the first entry that matches, and the
// first that matches with another value; -1 means none.
type patternHit struct{ first, other int }

// patternTable holds the results of both patterns for the modules, for all eras that form the same
// expressions.
type patternTable struct {
	rank, alpha map[string]patternHit
	failures    []patternFailure // keys that PEFT would try and that cannot be evaluated
	spent       bool             // the budget ran out before everything was decided
}

type patternFailure struct {
	key string
	err error
}

// incomplete reports whether results are missing in an era's table.
func (ps *patterns) incomplete(era patternEra) bool {
	t := &ps.tables[era.form()]
	return t.spent || len(t.failures) > 0
}

// lookup fills the table of an era for all modules of the adapter, and for more names on request.
func (ps *patterns) lookup(era patternEra, more ...string) *patternTable {
	t := &ps.tables[era.form()]
	if t.rank == nil {
		t.rank, t.alpha = make(map[string]patternHit), make(map[string]patternHit)
		more = slices.Concat(ps.modules, more)
	}
	ps.search(t, era, ps.rank, t.rank, more)
	ps.search(t, era, ps.alpha, t.alpha, more)
	return t
}

// search matches a pattern with modules and adds the results to hits. It compiles each expression
// once, only if a module still needs it, and drops it afterwards: an adapter can have very many.
func (ps *patterns) search(t *patternTable, era patternEra, p pattern, hits map[string]patternHit, modules []string) {
	var open []string
	for _, m := range modules {
		if _, known := hits[m]; !known {
			hits[m] = patternHit{-1, -1}
			open = append(open, m)
		}
	}
	for i := 0; i < len(p) && len(open) > 0 && !t.spent; i++ {
		err := ps.matchEntry(era, p, i, hits, open)
		if err == nil {
			continue
		}
		t.spent = endsSearch(err)
		if slices.ContainsFunc(open, func(m string) bool { return hits[m].first < 0 }) { // PEFT would try this key
			t.failures = append(t.failures, patternFailure{p[i].key, err})
		}
	}
}

// matchEntry matches one entry with the modules that still need it: those without an entry, and
// those without a second entry of another value.
func (ps *patterns) matchEntry(era patternEra, p pattern, i int, hits map[string]patternHit, modules []string) error {
	var match *matcher
	for _, m := range modules {
		h := hits[m]
		if h.first >= 0 && (h.other >= 0 || p[h.first].value == p[i].value) {
			continue
		}
		if match == nil {
			var err error
			if match, err = ps.matcher(era, p[i].key); err != nil {
				return err
			}
		}
		ok, err := match.matches(m)
		switch {
		case err != nil:
			return err
		case ok && h.first < 0:
			hits[m] = patternHit{i, -1}
		case ok:
			hits[m] = patternHit{h.first, i}
		}
	}
	return nil
}

// endsSearch reports whether an error ends the search. An error of one key does not; an empty
// budget or an ended context does.
func endsSearch(err error) bool {
	return errors.Is(err, pyre.ErrBudget) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// requirePatterns adds a requirement for every key that cannot be evaluated by the era's rule.
func (p *peftReader) requirePatterns() {
	ps := &p.config.patterns
	for _, f := range ps.tables[ps.era.form()].failures {
		p.require(format.FeaturePattern, f.key)
		p.note("the key %q of rank_pattern or alpha_pattern cannot be evaluated: %v", f.key, f.err)
	}
}

// patternMatch is the entry that gave a module its value. conflict is another key that matches the
// module with another value.
type patternMatch struct {
	field, key, conflict string
	value                float64
}

// named returns the index of the entry called key, or -1.
func (p pattern) named(key string) int {
	return slices.IndexFunc(p, func(e patternEntry) bool { return e.key == key })
}

// match returns the entry of rank_pattern or alpha_pattern that gives a module its value, nil for
// the default. If no expression matches, PEFT looks the module's name up in the dict.
func (ps *patterns) match(field, module string) *patternMatch {
	p := ps.rank
	if field == "alpha_pattern" {
		p = ps.alpha
	}
	if len(p) == 0 {
		return nil
	}
	t := ps.lookup(ps.era, module)
	hit := t.rank[module]
	if field == "alpha_pattern" {
		hit = t.alpha[module]
	}
	chosen := hit.first
	switch {
	case ps.era == era006:
		chosen = p.named(ps.sharedKey(t, module))
	case chosen < 0:
		chosen = p.named(module)
	}
	if chosen < 0 {
		return nil
	}
	found := &patternMatch{field: field, key: p[chosen].key, value: p[chosen].value}
	for _, i := range []int{hit.first, hit.other} {
		if i >= 0 && p[i].value != found.value {
			found.conflict = p[i].key
			break
		}
	}
	return found
}

// sharedKey returns the key that era006 looks up in both patterns.
func (ps *patterns) sharedKey(t *patternTable, module string) string {
	if i := t.rank[module].first; i >= 0 {
		return ps.rank[i].key
	}
	if i := t.alpha[module].first; i >= 0 {
		return ps.alpha[i].key
	}
	return module
}

// glob is a key of literals, dots and .*, split at the stars. A dot that means any character is
// stored as 0.
type glob [][]byte

// parseGlob returns nil if the key is any other expression. Names have no line breaks, so a dot
// matches every character.
func parseGlob(key string) glob {
	g := glob{nil}
	for i := 0; i < len(key); i++ {
		c := key[i]
		switch {
		case strings.HasPrefix(key[i:], ".*"):
			g = append(g, nil)
			i++
			continue
		case strings.HasPrefix(key[i:], `\.`):
			i++
			c = '.'
		case c == '.':
			c = 0
		case !isLiteral(c):
			return nil
		}
		g[len(g)-1] = append(g[len(g)-1], c)
	}
	return g
}

// isLiteral reports whether c stands for itself. Text outside ASCII goes to the engine, because a
// dot matches a character and not a byte.
func isLiteral(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

// matches reports whether the era's expression for the key matches a module: the whole name, or the
// part after one of its dots.
func (g glob) matches(era patternEra, module string) bool {
	if era == era015 && g.is(module) {
		return true
	}
	if len(g) == 1 { // of fixed length
		at := len(module) - len(g[0])
		return at > 0 && module[at-1] == '.' && g.is(module[at:])
	}
	for i := range len(module) {
		if module[i] == '.' && g.is(module[i+1:]) {
			return true
		}
	}
	return false
}

// is reports whether the glob matches a whole text: its first piece at the start, its last piece at
// the end, and the others in order between them.
func (g glob) is(text string) bool {
	last := len(g) - 1
	if last == 0 {
		return len(text) == len(g[0]) && fits(g[0], text)
	}
	if len(text) < len(g[0])+len(g[last]) || !fits(g[0], text) || !fits(g[last], text[len(text)-len(g[last]):]) {
		return false
	}
	text = text[len(g[0]) : len(text)-len(g[last])]
	for _, piece := range g[1:last] {
		for !fits(piece, text) {
			if text == "" {
				return false
			}
			text = text[1:]
		}
		text = text[len(piece):]
	}
	return true
}

// fits reports whether text begins with piece.
func fits(piece []byte, text string) bool {
	if len(text) < len(piece) {
		return false
	}
	for i, c := range piece {
		if c != 0 && c != text[i] {
			return false
		}
	}
	return true
}
