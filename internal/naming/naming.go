// Package naming finds the tensors of a base that an adapter's module names mean. Names are
// compared, never taken apart by guessing: a prefix is added or removed only where that makes every
// name of the adapter one of the base.
package naming

import (
	"fmt"
	"slices"
	"strings"
)

// Base is an index of a base's tensor names.
type Base struct {
	byName   map[string]string // without wrappers → as it is
	segments []string          // the distinct first segments, sorted
	tails    map[string]bool   // of HasTail, made at its first call

	// The rest is for translations that are tried last, and for messages; each is made when it is
	// needed.
	places map[string][]string // by the place of a tensor
	sorted []string
}

// wrappers are the path segments that training frameworks put around modules: torch.compile, FSDP,
// and activation checkpointing. No model has a module of such a name. Nor has one a module without
// a name, which torch refuses: that a path has two dots in a row is a slip of whoever joined its
// segments.
var wrappers = []string{"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", ""}

// StripWrappers removes the segments that training frameworks add to a path.
func StripWrappers(name string) string {
	if !hasWrapper(name) {
		return name
	}
	parts := strings.Split(name, ".")
	return strings.Join(slices.DeleteFunc(parts, isWrapper), ".")
}

func isWrapper(segment string) bool { return slices.Contains(wrappers, segment) }

// hasWrapper allocates nothing: of a large model nearly every name has none.
func hasWrapper(name string) bool {
	for segment := range strings.SplitSeq(name, ".") {
		if isWrapper(segment) {
			return true
		}
	}
	return false
}

// Index makes the index of a base.
func Index(names []string) *Base {
	b := &Base{byName: make(map[string]string, len(names))}
	last := ""
	for _, name := range names {
		plain := StripWrappers(name)
		b.byName[plain] = name
		if first, _, _ := strings.Cut(plain, "."); first != last || len(b.segments) == 0 {
			b.segments = append(b.segments, first)
			last = first
		}
	}
	slices.Sort(b.segments)
	b.segments = slices.Compact(b.segments)
	return b
}

// Has reports whether the base has a tensor, by its name without wrappers.
func (b *Base) Has(name string) bool { _, ok := b.byName[name]; return ok }

// rename is a candidate: the prefix that an adapter's names lose, the table that is applied to what
// is left, and the prefix that they get.
type rename struct {
	cut, add string
	move     *move
	newer    bool // from the older names of the table to the newer ones
	keep     bool // a name without the prefix stays as it is
}

func (r rename) apply(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, r.cut)
	if !ok && r.keep {
		return name, true
	}
	ok = ok && strings.Contains(rest, ".") // the path of a module is left, not only its parameter
	if r.move != nil {
		rest = r.move.apply(rest, r.newer)
	}
	return r.add + rest, ok
}

func (r rename) String() string {
	var words []string
	switch {
	case r.cut == "" && r.add == "":
	case r.cut == "":
		words = append(words, fmt.Sprintf("with %q in front", r.add))
	case r.add == "":
		words = append(words, fmt.Sprintf("without %q in front", r.cut))
	default:
		words = append(words, fmt.Sprintf("with %q in place of %q", r.add, r.cut))
	}
	if r.move != nil && r.move.words != "" {
		words = append(words, r.move.words)
	} else if r.move != nil {
		version := "before"
		if r.newer {
			version = "from"
		}
		words = append(words, fmt.Sprintf("as transformers %s 5 names the modules of %s", version, r.move.models))
	}
	if words == nil {
		return "as they are"
	}
	return strings.Join(words, " and ")
}

// Mapping translates an adapter's names to a base's.
type Mapping struct {
	base   *Base
	rename rename
}

// Lookup returns the base's name for an adapter's; ok is false where the base has no such tensor.
func (m Mapping) Lookup(name string) (string, bool) {
	renamed, ok := m.rename.apply(name)
	if !ok {
		return "", false
	}
	actual, ok := m.base.byName[renamed]
	return actual, ok
}

// Renamed returns what the adapter's name becomes, whether the base has it or not.
func (m Mapping) Renamed(name string) string {
	renamed, _ := m.rename.apply(name)
	return renamed
}

// Cut returns the prefix that the adapter's names have and the base's lack, such as GPT-2's
// "transformer.", and what training frameworks have left in front of it.
func (m Mapping) Cut() (framework, prefix string) {
	for _, left := range frameworks {
		if rest, ok := strings.CutPrefix(m.rename.cut, left); ok && len(left) > len(framework) {
			framework, prefix = left, rest
		}
	}
	if framework == "" {
		return "", m.rename.cut
	}
	return framework, prefix
}

// Describe says in words how the names are translated: "as they are" where they are not.
func (m Mapping) Describe() string { return m.rename.String() }

// Match finds the one translation under which every wanted name is in the base. Names that match as
// they are win. Where no translation fits all names, the one that fits most is returned with the
// names that it misses; where several fit, ambiguous lists them in words.
func (b *Base) Match(wanted []string) (m Mapping, missing, ambiguous []string) {
	if len(wanted) == 0 {
		return Mapping{b, rename{}}, nil, nil
	}
	candidates := b.candidates(wanted, nil, false)
	best, bestHits := candidates[0], -1
	var full []rename
	for _, c := range candidates {
		n := hits(b, c, wanted, len(wanted)-bestHits)
		if n > bestHits {
			best, bestHits = c, n
		}
		if n == len(wanted) {
			if c == (rename{}) {
				return Mapping{b, c}, nil, nil
			}
			if !slices.ContainsFunc(full, func(f rename) bool { return same(f, c, wanted) }) {
				full = append(full, c)
			}
			if len(full) == enough {
				break
			}
		}
	}
	if len(full) == 0 {
		if full = b.moved(wanted); len(full) == 0 {
			full = b.deeper(wanted)
		}
		if len(full) == 1 {
			return Mapping{b, full[0]}, nil, nil
		}
	}
	m = Mapping{b, best}
	if len(full) > 1 {
		for _, c := range full {
			ambiguous = append(ambiguous, c.String())
		}
		return m, nil, ambiguous
	}
	for _, name := range wanted {
		if _, ok := m.Lookup(name); !ok {
			missing = append(missing, name)
		}
	}
	return m, missing, nil
}

// hits counts the names that a translation finds in the base. It stops where it has missed more
// than are allowed.
func hits(b *Base, r rename, wanted []string, allowed int) (n int) {
	for i, name := range wanted {
		if _, ok := (Mapping{b, r}).Lookup(name); ok {
			n++
		}
		if i+1-n > allowed {
			break
		}
	}
	return n
}

// enough is how many translations that fit are looked for: an error lists them.
const enough = 8

// moved lists the candidates under which every name is in the base after its modules were renamed
// by a table. Tables that do the same to these names count once.
func (b *Base) moved(wanted []string) (full []rename) {
	for _, table := range moves {
		for _, newer := range []bool{false, true} {
			for _, c := range b.candidates(wanted, table, newer) {
				missing := slices.ContainsFunc(wanted, func(name string) bool { _, ok := (Mapping{b, c}).Lookup(name); return !ok })
				if missing || slices.ContainsFunc(full, func(f rename) bool { return same(f, c, wanted) }) {
					continue
				}
				if full = append(full, c); len(full) == enough {
					return full
				}
			}
		}
	}
	return full
}

// same reports whether two candidates translate every name alike.
func same(a, b rename, names []string) bool {
	for _, name := range names {
		x, _ := a.apply(name)
		y, _ := b.apply(name)
		if x != y {
			return false
		}
	}
	return true
}

// frameworks are the prefixes that PEFT and torch.nn.parallel put in front of every name.
var frameworks = []string{"base_model.model.", "base_model.model.base_model.model.", "module.", "module.base_model.model."}

// candidates lists the translations to try, with a table or without, the most common first: PEFT's
// own prefix left over, the prefix "model." of a language model around its trunk, and any other
// prefix that all names share or that the base's names begin with (GPT-2's "transformer.", which
// the checkpoint of the hub lacks). A prefix is removed or added, never exchanged for another one:
// the text half of a model and its vision half may have the same names below theirs.
func (b *Base) candidates(wanted []string, table *move, newer bool) []rename {
	prefixes := []string{"model."}
	// One name without the prefix, such as a head, must not hide it from the others: what pairs is
	// paired first.
	for _, name := range []string{wanted[0], wanted[len(wanted)/2], wanted[len(wanted)-1]} {
		if first, _, _ := strings.Cut(name, "."); !slices.Contains(prefixes, first+".") {
			prefixes = append(prefixes, first+".")
		}
	}
	var all []rename
	seen := make(map[rename]bool)
	add := func(r rename) {
		if !seen[r] {
			seen[r] = true
			all = append(all, r)
		}
	}
	// A base can have as many first segments as tensors: only those are worth a try with which some
	// of the names exist.
	probes := []string{wanted[0], wanted[len(wanted)/2], wanted[len(wanted)-1]}
	fits := func(r rename) bool {
		return slices.ContainsFunc(probes, func(name string) bool { _, ok := (Mapping{b, r}).Lookup(name); return ok })
	}
	for _, left := range append([]string{""}, frameworks...) {
		add(rename{cut: left, move: table, newer: newer})
		for _, p := range prefixes {
			add(rename{cut: left + p, move: table, newer: newer})
		}
		add(rename{cut: left, add: "model.", move: table, newer: newer})
		for _, segment := range b.segments {
			if r := (rename{cut: left, add: segment + ".", move: table, newer: newer}); fits(r) {
				add(r)
			}
		}
	}
	return all
}
