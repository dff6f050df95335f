package convert

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// This file resolves rank_pattern and alpha_pattern, which name modules by regular expressions.
// PEFT has changed twice how it does that, and says so in no file: whoever merges an old adapter by
// the new rule gets another alpha, and no error.

// patternEra is a run of PEFT's releases that resolve patterns alike.
type patternEra int

const (
	// era015 matches ^(.*\.)?(KEY)$ with the name of the module; the first key of each pattern that
	// matches wins.
	era015 patternEra = iota
	// era014 matches .*\.KEY$: a bar in KEY splits the whole expression, and a KEY that is a whole
	// name does not match it.
	era014
	// era006 matches like era014, and takes one key for both patterns: the first of rank_pattern's
	// and then alpha_pattern's keys that matches. A pattern that has no entry under that very key
	// gives the default.
	era006
)

var patternEras = []patternEra{era015, era014, era006}

// String names the releases.
func (e patternEra) String() string {
	return [...]string{era015: "PEFT from 0.15 on", era014: "PEFT 0.14", era006: "PEFT from 0.6 to 0.13"}[e]
}

// expression is the era's argument of re.match for a key.
func (e patternEra) expression(key string) string {
	if e == era015 {
		return `(.*\.)?(` + key + `)$`
	}
	return `.*\.` + key + `$`
}

// form counts the expressions that eras make of a key.
func (e patternEra) form() int { return min(int(e), 1) }

// eraFields are fields of the configuration that a release was the first to write, by era; PEFT
// writes every field that it knows, at its default too.
var eraFields = map[patternEra][]string{
	era015: {"corda_config", "trainable_token_indices", "qalora_group_size", "use_qalora", "target_parameters", "alora_invocation_tokens", "arrow_config",
		"ensure_weight_tying", "lora_ga_config", "use_bdlora", "monteclora_config", "velora_config", "kasa_config"},
	era014: {"eva_config", "exclude_modules", "lora_bias"},
	era006: {"auto_mapping", "layers_pattern", "layers_to_transform", "revision", "init_lora_weights"}, // all of them: older, and nobody leaves them out
}

// era tells who wrote a configuration with patterns, and the evidence for it; ok is false for one
// that no release of PEFT has written as it is, such as one made by hand, which the present PEFT
// would read.
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

// eraChoice finds the era of the release that trained an adapter with patterns.
type eraChoice struct {
	*peftReader
	modules map[string]map[peftRole]int
	names   []string // of the modules, sorted
}

// decide chooses the era by the configuration and by the ranks of the factors, which the era of the
// training must give. It notes where another era would merge something else.
func (e *eraChoice) decide() {
	ps := &e.config.patterns
	if len(ps.rank)+len(ps.alpha) == 0 {
		return
	}
	e.names = slices.Sorted(maps.Keys(e.modules))
	for _, name := range e.names {
		ps.modules = append(ps.modules, name, e.patternName(name))
	}
	said, evidence, certain := e.config.eraByConfig()
	ps.era = said
	if !e.ranksFit() {
		for _, era := range patternEras {
			if ps.era = era; e.ranksFit() {
				evidence = fmt.Sprintf("the ranks of the factors are what that gives, and not what %v gives (%s)", said, evidence)
				certain = true
				break
			}
			ps.era = said
		}
	}
	for _, other := range patternEras {
		if other == ps.era || certain && other > ps.era {
			continue // that an older PEFT would read a newer file otherwise is no news
		}
		if e.compare(ps.era, other, evidence) {
			return
		}
	}
}

// ranksFit reports whether the era gives every matrix A of a plain layer its rank.
func (e *eraChoice) ranksFit() bool {
	for _, name := range e.names {
		i, ok := e.modules[name][roleA]
		if !ok || e.config.hasExperts || len(e.tensors[i].Shape) != 2 {
			continue
		}
		if rank, _ := e.config.rank(name); e.tensors[i].Shape[0] != uint64(rank) {
			return false
		}
	}
	return true
}

// compare notes the first module at which two eras differ.
func (e *eraChoice) compare(era, other patternEra, evidence string) bool {
	c, ps := e.config, &e.config.patterns
	if ps.lookup(other); ps.incomplete(other) {
		return false // what it would give is not known, and it is not needed
	}
	for _, name := range e.names {
		ps.era = other
		otherRank, _ := c.rank(name)
		otherAlpha, _ := c.alpha(name)
		ps.era = era
		rank, _ := c.rank(name)
		alpha, _ := c.alpha(name)
		if rank != otherRank || alpha != otherAlpha {
			e.note("rank_pattern and alpha_pattern are read as %v does: %s. For %s they give rank %d and alpha %v; %v would take %d and %v",
				era, evidence, name, rank, alpha, other, otherRank, otherAlpha)
			return true
		}
	}
	return false
}
