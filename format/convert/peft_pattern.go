package convert

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// This file resolves rank_pattern and alpha_pattern, which name modules by regular expressions.
// PEFT has changed the rule twice without leaving a mark in its files. Reading an old adapter by
// the new rule silently gives another alpha.

// patternEra is a series of PEFT releases that resolve patterns by the same rule.
type patternEra int

const (
	// era015 matches ^(.*\.)?(KEY)$ with the name of the module. The first matching key of each
	// pattern wins.
	era015 patternEra = iota
	// era014 matches .*\.KEY$. A bar in KEY therefore splits the whole expression, and a KEY equal
	// to the whole name does not match it.
	era014
	// era006 matches like era014 but picks one key for both patterns: the first match among the
	// keys of rank_pattern and then those of alpha_pattern. A pattern without an entry under that
	// very key gives the default.
	era006
)

var patternEras = []patternEra{era015, era014, era006}

// String returns the releases.
func (e patternEra) String() string {
	return [...]string{era015: "PEFT from 0.15 on", era014: "PEFT 0.14", era006: "PEFT from 0.6 to 0.13"}[e]
}

// expression returns the expression that PEFT of the era passes to re.match for a key.
func (e patternEra) expression(key string) string {
	if e == era015 {
		return `(.*\.)?(` + key + `)$`
	}
	return `.*\.` + key + `$`
}

// form numbers the different expressions that eras form for a key.
func (e patternEra) form() int { return min(int(e), 1) }

// eraFields lists, by era, fields that a release of that era was the first to write. PEFT writes
// every field it knows, even at its default.
var eraFields = map[patternEra][]string{
	era015: {"corda_config", "trainable_token_indices", "qalora_group_size", "use_qalora", "target_parameters", "alora_invocation_tokens", "arrow_config",
		"ensure_weight_tying", "lora_ga_config", "use_bdlora", "monteclora_config", "velora_config", "kasa_config"},
	era014: {"eva_config", "exclude_modules", "lora_bias"},
	era006: {"auto_mapping", "layers_pattern", "layers_to_transform", "revision", "init_lora_weights"}, // older fields, which every release of this era writes
}

// eraByConfig returns the era of the program that wrote the configuration, and the evidence for it.
// ok is false if no release of PEFT writes such a configuration, for example one made by hand; the
// era is then that of the present PEFT.
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
			return era015, "the configuration lacks " + name + ", which every release of PEFT writes, so another program wrote it", false
		}
	}
	return era006, "the configuration has every field of PEFT 0.6 and none that 0.14 added", true
}

// peftMinor returns the second number of a version 0.x, and a large number for any later version.
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

// decide chooses the era from the configuration and from the ranks of the factors, which the rule
// at training time must give. It notes when another era would merge something else.
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
				evidence = fmt.Sprintf("the factors have the ranks that this rule gives, not those of %v (%s)", said, evidence)
				certain = true
				break
			}
			ps.era = said
		}
	}
	for _, other := range patternEras {
		if other == ps.era || certain && other > ps.era {
			continue // an older PEFT may well read a newer file differently
		}
		if e.compare(ps.era, other, evidence) {
			return
		}
	}
}

// ranksFit reports whether the era gives every matrix A of an ordinary layer its actual rank.
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

// compare notes the first module for which two eras give different values.
func (e *eraChoice) compare(era, other patternEra, evidence string) bool {
	c, ps := e.config, &e.config.patterns
	if ps.lookup(other); ps.incomplete(other) {
		return false // its result is unknown and not needed
	}
	for _, name := range e.names {
		ps.era = other
		otherRank, _ := c.rank(name)
		otherAlpha, _ := c.alpha(name)
		ps.era = era
		rank, _ := c.rank(name)
		alpha, _ := c.alpha(name)
		if rank != otherRank || alpha != otherAlpha {
			e.note("rank_pattern and alpha_pattern are read as %v reads them: %s. For %s they give rank %d and alpha %v; %v would give %d and %v",
				era, evidence, name, rank, alpha, other, otherRank, otherAlpha)
			return true
		}
	}
	return false
}
