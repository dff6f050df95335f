// Package naming matches an adapter's module names with the tensors of a base. It compares names
// and never guesses their parts: it adds or removes a prefix only if the base then has every name
// of the adapter.
package naming

import (
	"fmt"
	"slices"
	"strings"
)

// Base is an index of a base's tensor names.
type Base struct {
	byName   map[string]string // name without wrappers → the base's name
	segments []string          // the distinct first segments, sorted
	tails    map[string]bool   // filled by the first call of HasTail

	// The rest serves messages and the translations that are tried last. Each field is filled on
	// first use.
	places map[string][]string // by the place of a tensor
	sorted []string
}

// wrappers are the path segments that torch.compile, FSDP and activation checkpointing put around
// modules. No model has modules with these names. torch refuses an empty module name, so two dots
// in a row are a slip of the program that joined the segments.
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

// hasWrapper allocates nothing: nearly every name of a large model has no wrapper.
func hasWrapper(name string) bool {
	for segment := range strings.SplitSeq(name, ".") {
		if isWrapper(segment) {
			return true
		}
	}
	return false
}

// Index indexes the tensor names of a base.
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

// Has reports whether the base has a tensor of this name, without wrappers.
func (b *Base) Has(name string) bool { _, ok := b.byName[name]; return ok }

// rename is a candidate translation: cut a prefix off an adapter's name, apply a table, add a
// prefix.
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
	ok = ok && strings.Contains(rest, ".") // the rest must keep a module, not only the parameter
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

// Mapping translates an adapter's names to those of a base.
type Mapping struct {
	base   *Base
	rename rename
}

// Lookup returns the base's name for a name of the adapter; ok is false if the base has no such
// tensor.
func (m Mapping) Lookup(name string) (string, bool) {
	renamed, ok := m.rename.apply(name)
	if !ok {
		return "", false
	}
	actual, ok := m.base.byName[renamed]
	return actual, ok
}

// Renamed translates the adapter's name even if the base has no tensor of the new name.
func (m Mapping) Renamed(name string) string {
	renamed, _ := m.rename.apply(name)
	return renamed
}

// Cut returns the prefix that the adapter has and the base lacks, such as GPT-2's "transformer.",
// and the framework's prefix in front of it.
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

// Describe describes the translation in words: "as they are" if it changes nothing.
func (m Mapping) Describe() string { return m.rename.String() }

// Match finds the one translation that puts every wanted name in the base. Unchanged names win. If
// no translation fits all names, Match returns the one that fits most, with the names that it
// misses. If several fit, ambiguous describes each.
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

// hits counts the names that a translation finds in the base. It stops after more misses than
// allowed.
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

// enough is how many fitting translations Match looks for; an error lists them.
const enough = 8

// moved lists the candidates with a table that put every name in the base. Tables with the same
// effect on these names count once.
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

// same reports whether two candidates agree on every name.
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

// frameworks are the prefixes that PEFT and torch.nn.parallel add to every name.
var frameworks = []string{"base_model.model.", "base_model.model.base_model.model.", "module.", "module.base_model.model."}

// candidates lists the translations to try, with or without a table, the most common first: PEFT's
// own prefix left over, "model." around the trunk of a language model, and any other prefix that
// all names share or that names of the base begin with (checkpoints of GPT-2 on the hub lack its
// "transformer."). It adds or removes a prefix but never swaps one for another: the text half and
// the vision half of a model may use the same names.
func (b *Base) candidates(wanted []string, table *move, newer bool) []rename {
	prefixes := []string{"model."}
	// One name without the prefix, such as a head, must not hide the prefix of the others.
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
	// A base can have as many first segments as tensors, so only those are tried that lead to an
	// existing name.
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
