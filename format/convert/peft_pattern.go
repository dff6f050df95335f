package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// This file resolves rank_pattern and alpha_pattern, which name modules by regular expressions. PEFT has changed twice how it
// does that, and says so in no file: whoever merges an old adapter by the new rule gets another alpha, and no error.

// patternEra is a run of PEFT's releases that resolve patterns alike.
type patternEra int

const (
	// era015 matches ^(.*\.)?(KEY)$ with the name of the module; the first key of each pattern that matches wins.
	era015 patternEra = iota
	// era014 matches .*\.KEY$: a bar in KEY splits the whole expression, and a KEY that is a whole name does not match it.
	era014
	// era006 matches like era014, and takes one key for both patterns: the first of rank_pattern's and then alpha_pattern's
	// keys that matches. A pattern that has no entry under that very key gives the default.
	era006
)

var patternEras = []patternEra{era015, era014, era006}

// String names the releases.
func (e patternEra) String() string {
	return [...]string{era015: "PEFT from 0.15 on", era014: "PEFT 0.14", era006: "PEFT from 0.6 to 0.13"}[e]
}

// expression is what the era gives to re.match for a key.
func (e patternEra) expression(key string) string {
	if e == era015 {
		return `(.*\.)?(` + key + `)$`
	}
	return `.*\.` + key + `$`
}

// form counts the expressions that eras make of a key.
func (e patternEra) form() int { return min(int(e), 1) }

// eraFields are fields of the configuration that a release was the first to write, by era; PEFT writes every field that it
// knows, at its default too.
var eraFields = map[patternEra][]string{
	era015: {"corda_config", "trainable_token_indices", "qalora_group_size", "use_qalora", "target_parameters", "alora_invocation_tokens", "arrow_config",
		"ensure_weight_tying", "lora_ga_config", "use_bdlora", "monteclora_config", "velora_config", "kasa_config"},
	era014: {"eva_config", "exclude_modules", "lora_bias"},
	era006: {"auto_mapping", "layers_pattern", "layers_to_transform", "revision", "init_lora_weights"}, // all of them: older, and nobody leaves them out
}

// era tells who wrote a configuration with patterns, and by what that is known; ok is false for one that no release of PEFT
// has written as it is, such as one made by hand, which the present PEFT would read.
func (c *peftConfigFile) eraByConfig() (e patternEra, evidence string, ok bool) {
	if minor, found := peftMinor(c.PEFTVersion); found {
		e = era015
		switch {
		case minor < 14:
			e = era006
		case minor == 14:
			e = era014
		}
		return e, "peft_version is " + c.PEFTVersion, true
	}
	has := func(name string) bool { return slices.Contains(c.names, name) }
	for _, e := range []patternEra{era015, era014} {
		if i := slices.IndexFunc(eraFields[e], has); i >= 0 {
			return e, "the configuration has the field " + eraFields[e][i], true
		}
	}
	for _, name := range eraFields[era006] {
		if !has(name) {
			return era015, "the configuration lacks " + name + ", which every PEFT writes, so it was made by other means", false
		}
	}
	return era006, "the configuration has every field of PEFT 0.6 and none that 0.14 added", true
}

// peftMinor takes the second number of a version 0.x; anything later is far from these eras.
func peftMinor(version string) (int, bool) {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return 0, false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil || major < 0 || minor < 0 {
		return 0, false
	}
	if major > 0 {
		return 1000 * major, true
	}
	return minor, true
}

// decideEra chooses the era by the configuration and by the ranks of the factors, which the era of the training must give. It
// notes where another era would merge something else.
func (p *peftReader) decideEra(modules map[string]map[peftRole]int) {
	c := p.config
	if len(c.RankPattern)+len(c.AlphaPatt) == 0 {
		return
	}
	names := make([]string, 0, len(modules))
	for name := range modules {
		names = append(names, name)
	}
	slices.Sort(names)
	said, evidence, certain := c.eraByConfig()
	c.era = said
	if !p.ranksFit(names, modules) {
		for _, e := range patternEras {
			if c.era = e; p.ranksFit(names, modules) {
				evidence = fmt.Sprintf("the ranks of the factors are what that gives, and not what %v gives (%s)", said, evidence)
				certain = true
				break
			}
			c.era = said
		}
	}
	for _, other := range patternEras {
		if other == c.era || certain && other > c.era {
			continue // that an older PEFT would read a newer file otherwise is no news
		}
		if p.noteEra(names, c.era, other, evidence) {
			return
		}
	}
}

// ranksFit reports whether the era gives every matrix A of a plain layer its rank.
func (p *peftReader) ranksFit(names []string, modules map[string]map[peftRole]int) bool {
	for _, name := range names {
		i, ok := modules[name][roleA]
		if !ok || p.config.hasExperts || len(p.tensors[i].Shape) != 2 {
			continue
		}
		if rank, _ := p.config.rank(name); p.tensors[i].Shape[0] != uint64(rank) {
			return false
		}
	}
	return true
}

// noteEra notes the first module at which two eras differ.
func (p *peftReader) noteEra(names []string, era, other patternEra, evidence string) bool {
	c := p.config
	for _, name := range names {
		c.era = other
		otherRank, _ := c.rank(name)
		otherAlpha, _ := c.alpha(name)
		c.era = era
		rank, _ := c.rank(name)
		alpha, _ := c.alpha(name)
		if rank != otherRank || alpha != otherAlpha {
			p.note("rank_pattern and alpha_pattern are read as %v does: %s. For %s they give rank %d and alpha %v; %v would take %d and %v",
				era, evidence, name, rank, alpha, other, otherRank, otherAlpha)
			return true
		}
	}
	return false
}

// pattern is rank_pattern or alpha_pattern: regular expressions for module names, in the order of the file, which decides.
type pattern []patternEntry

type patternEntry struct {
	key   string
	value float64
	plain bool             // no character of key is special but the dot
	re    [2]*pythonRegexp // else: by form; nil for one that cannot be evaluated
}

// patternMatch is the entry that gave a module its value; conflict is another key that matches with another value.
type patternMatch struct {
	field, key, conflict string
	value                float64
}

// UnmarshalJSON keeps the order of the keys.
func (p *pattern) UnmarshalJSON(text []byte) error {
	*p = nil
	dec := json.NewDecoder(bytes.NewReader(text))
	open, err := dec.Token()
	if err != nil || open == nil {
		return err
	}
	if open != json.Delim('{') {
		return fmt.Errorf("a pattern is an object, got %s", text)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value float64
		if err := dec.Decode(&value); err != nil {
			return err
		}
		*p = append(*p, patternEntry{key: key.(string), value: value})
	}
	_, err = dec.Token()
	return err
}

// maxPatternKeys bounds a pattern: an adapter has at most a key for each module.
const maxPatternKeys = 100_000

// compilePatterns prepares the patterns.
func (c *peftConfigFile) compilePatterns() error {
	for _, p := range []pattern{c.RankPattern, c.AlphaPatt} {
		if len(p) > maxPatternKeys {
			return fault.New(fault.Limit, "rank_pattern or alpha_pattern has %d keys, at most %d are read", len(p), maxPatternKeys)
		}
		for i := range p {
			p[i].compile()
		}
	}
	for _, e := range c.RankPattern {
		if !(e.value >= 1 && e.value <= maxRank) || e.value != math.Trunc(e.value) {
			return fault.New(fault.Corrupt, "rank_pattern gives %q the rank %v, and a rank is a whole number from 1 to %d", e.key, e.value, maxRank)
		}
	}
	return nil
}

func (e *patternEntry) compile() {
	e.plain = strings.IndexFunc(e.key, isSpecial) < 0
	if e.plain || len(e.key) > maxNameBytes { // the engine recurses
		return
	}
	for _, era := range []patternEra{era015, era014} {
		e.re[era.form()], _ = compilePython(era.expression(e.key)) // nil where it cannot be
	}
}

// requirePatterns makes the adapter require the keys that cannot be evaluated as the era does.
func (c *peftConfigFile) requirePatterns() {
	for _, p := range []pattern{c.RankPattern, c.AlphaPatt} {
		for i := range p {
			if !p[i].plain && p[i].re[c.era.form()] == nil {
				c.require(format.FeaturePattern, p[i].key)
			}
		}
	}
}

// isSpecial reports a character that may mean something in a regular expression.
func isSpecial(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_', r == '-', r == '.':
		return false
	}
	return true
}

// matches reports whether an era matches the key with a module's name. A key that cannot be evaluated, or not in time, matches
// nothing; requirePatterns tells.
func (e *patternEntry) matches(era patternEra, module string) bool {
	if e.plain {
		return e.matchesPlain(era, module)
	}
	re := &e.re[era.form()]
	if *re == nil {
		return false
	}
	ok, err := (*re).match(module)
	if err != nil {
		*re = nil
	}
	return ok && err == nil
}

// matchesPlain is what the expression of an era does for a key without special characters.
func (e *patternEntry) matchesPlain(era patternEra, module string) bool {
	at := len(module) - len(e.key)
	whole := at == 0 && era == era015
	if !whole && (at < 1 || module[at-1] != '.') {
		return false
	}
	for i := range len(e.key) {
		if e.key[i] != '.' && e.key[i] != module[at+i] {
			return false
		}
	}
	return true
}

// first returns the first entry whose key matches, or else the one whose key is the name itself: where none matches, PEFT
// looks the name up in the dictionary.
func (p pattern) first(era patternEra, module string) *patternEntry {
	for i := range p {
		if p[i].matches(era, module) {
			return &p[i]
		}
	}
	return p.named(module)
}

// named returns the entry with a key.
func (p pattern) named(key string) *patternEntry {
	if i := slices.IndexFunc(p, func(e patternEntry) bool { return e.key == key }); i >= 0 {
		return &p[i]
	}
	return nil
}

// match returns the entry of a pattern that gives a module its value, nil for the default.
func (c *peftConfigFile) match(p pattern, field, module string) *patternMatch {
	if len(p) == 0 {
		return nil
	}
	e := p.first(c.era, module)
	if c.era == era006 {
		e = p.named(c.sharedKey(module))
	}
	if e == nil {
		return nil
	}
	found := &patternMatch{field: field, key: e.key, value: e.value}
	for i := range p {
		if p[i].value != e.value && p[i].matches(c.era, module) {
			found.conflict = p[i].key
			break
		}
	}
	return found
}

// sharedKey is the key that era006 looks up in both patterns.
func (c *peftConfigFile) sharedKey(module string) string {
	for _, p := range []pattern{c.RankPattern, c.AlphaPatt} {
		for i := range p {
			if p[i].matches(c.era, module) {
				return p[i].key
			}
		}
	}
	return module
}
