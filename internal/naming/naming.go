// Package naming matches an adapter's module names with the tensors of a base. It compares names
// and never guesses their parts: it adds or removes a prefix only if the base then has every name
// of the adapter.
package naming

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/lookup"
)

// Base is an index of a base's tensor names.
type Base struct {
	spelled

	isTranslated bool // from the names of llama.cpp

	// Each field below is filled on first use.
	tails  map[string]bool     // for HasTail
	fronts map[string][]string // the first segments of names, sorted, by the rest of the name
	places map[string][]string // by the place of a tensor
	sorted []string

	components []*component // of an image or video model; see componentsOf
}

// spelled finds the names of a base by their spelling without wrappers.
type spelled struct {
	names []string          // the base's, sorted
	plain *lookup.Table     // of those without wrappers
	other map[string]string // a name that the base spells in another way → the base's name

	allPlain bool // plain has all names
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

// hasWrapper first looks for the two letters with which every wrapper begins: planning asks it
// several times for each name of a model, and nearly all have no wrapper.
func hasWrapper(name string) bool {
	before := byte('.')
	for i := range len(name) {
		if c := name[i]; before == '.' && (c == '_' || c == '.') {
			return slices.ContainsFunc(strings.Split(name, "."), isWrapper)
		} else {
			before = c
		}
	}
	return before == '.'
}

// Wrapper returns the first segment of a path that a training framework added, "" if there is none.
func Wrapper(name string) string {
	if !hasWrapper(name) {
		return ""
	}
	parts := strings.Split(name, ".")
	return parts[slices.IndexFunc(parts, isWrapper)]
}

// Index indexes the tensor names of a base.
func Index(names []string) *Base { return indexBy(names, StripWrappers) }

// indexBy is Index for names that are spelled in another way.
func indexBy(names []string, spell func(name string) string) *Base {
	b := &Base{spelled: spelled{names: names, plain: lookup.New(len(names)), other: make(map[string]string), allPlain: true}}
	if !slices.IsSorted(names) {
		b.names = slices.Sorted(slices.Values(names))
	}
	for i, name := range b.names {
		if plain := spell(name); plain != name {
			b.other[plain], b.allPlain = name, false
			continue
		}
		b.plain.Add(name, i, b.nameAt)
		delete(b.other, name)
	}
	unwrap(b)
	return b
}

func (s *spelled) nameAt(i int) string { return s.names[i] }

// find returns the base's name for a name without wrappers.
func (s *spelled) find(plain string) (actual string, ok bool) {
	if actual, ok = s.other[plain]; ok {
		return actual, true
	}
	if _, ok = s.plain.Find(plain, s.nameAt); ok {
		return plain, true
	}
	return "", false
}

// all yields the names without wrappers.
func (s *spelled) all() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, name := range s.names {
			isSpelled := s.allPlain
			if !isSpelled {
				_, isSpelled = s.plain.Find(name, s.nameAt)
			}
			if _, twice := s.other[name]; !twice && isSpelled && !yield(name) {
				return
			}
		}
		for plain := range s.other {
			if !yield(plain) {
				return
			}
		}
	}
}

// Has reports whether the base has a tensor of this name, without wrappers.
func (b *Base) Has(name string) bool { _, ok := b.find(name); return ok }

// rename is a candidate translation: cut a prefix off an adapter's name, apply a table, add a
// prefix.
type rename struct {
	cut, add string
	move     *move
	newer    bool // from the older names of the table to the newer ones
	keep     bool // a name without the prefix stays as it is
}

func (r rename) apply(name string) (string, bool) {
	if r.keep && !strings.HasPrefix(name, r.cut) {
		return cutModule(name, "")
	}
	rest, ok := cutModule(name, r.cut)
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
	return m.base.find(renamed)
}

// Renamed translates the adapter's name even if the base has no tensor of the new name. A name that
// the translation cannot change stays as it is.
func (m Mapping) Renamed(name string) string {
	if renamed, ok := m.rename.apply(name); ok {
		return renamed
	}
	return name
}

// Cut returns the prefix that the adapter has and the base lacks, such as GPT-2's "transformer.",
// and the framework's prefix in front of it.
func (m Mapping) Cut() (framework, prefix string) {
	if m.rename.add != "" {
		return "", ""
	}
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

// Unchanged returns the translation that changes no name.
func Unchanged(b *Base) Mapping { return Mapping{b, rename{}} }

// Match finds the one translation that puts every wanted name in the base, by section 4 of
// spec/APPLY.md. If no translation fits all names, Match returns the best one, with the names that
// it misses. If several fit, ambiguous describes each.
func (b *Base) Match(wanted []string) (m Mapping, missing, ambiguous []string) {
	if len(wanted) == 0 {
		return Mapping{b, rename{}}, nil, nil
	}
	full := b.fitting(wanted)
	if len(full) == 1 {
		return Mapping{b, full[0]}, nil, nil
	}
	m = Mapping{b, b.best(wanted)}
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

// Best returns the translation that Match finds, or else the best one of steps 1 and 2.
func (b *Base) Best(wanted []string) Mapping {
	m, _, _ := b.Match(wanted)
	return m
}

// fitting lists the translations of the first step in which one puts every name in the base. Those
// with the same effect on these names count once, and no more than enough are listed.
func (b *Base) fitting(wanted []string) []rename {
	if b.hasAll(rename{}, wanted) {
		return []rename{{}}
	}
	if full := b.among(wanted, b.candidates(wanted[0], nil, false)); len(full) > 0 {
		return full
	}
	var moved []rename
	for _, table := range moves {
		for _, newer := range []bool{false, true} {
			moved = append(moved, b.candidates(wanted[0], table, newer)...)
		}
	}
	if full := b.among(wanted, moved); len(full) > 0 {
		return full
	}
	return b.deeper(wanted)
}

// among lists the candidates that put every name in the base.
func (b *Base) among(wanted []string, candidates []rename) (full []rename) {
	for _, c := range candidates {
		isLike := func(f rename) bool { return same(f, c, wanted) }
		if b.hasAll(c, wanted) && !slices.ContainsFunc(full, isLike) {
			if full = append(full, c); len(full) == enough {
				break
			}
		}
	}
	return full
}

// enough is how many fitting translations Match looks for; an error lists them.
const enough = 8

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

// frameworks are the prefixes that PEFT and torch.nn.parallel add to every name, after none.
var frameworks = []string{"", "base_model.model.", "base_model.model.base_model.model.", "module.", "module.base_model.model."}

// trunk is the prefix around the trunk of a language model. It is tried before all others.
const trunk = "model."

// candidates lists the translations that can put a name in the base, with or without a table: they
// cut the prefix of a framework, and then one more segment, or put one in its place (checkpoints of
// GPT-2 on the hub lack its "transformer."). A translation of all names of an adapter is among
// those of each. Nothing but the framework's prefix is swapped for another one: the text half and
// the vision half of a model may use the same names.
func (b *Base) candidates(name string, table *move, newer bool) (all []rename) {
	for _, left := range frameworks {
		rest, ok := cutModule(name, left)
		if !ok {
			continue
		}
		all = append(all, rename{cut: left, move: table, newer: newer})
		if segment, _, _ := strings.Cut(rest, "."); strings.Count(rest, ".") > 1 {
			all = append(all, rename{cut: left + segment + ".", move: table, newer: newer})
		}
		if table != nil {
			rest = table.apply(rest, newer)
		}
		for _, segment := range b.before(rest) {
			all = append(all, rename{cut: left, add: segment + ".", move: table, newer: newer})
		}
	}
	return all
}

// cutModule cuts a prefix off a name. The rest must keep a module, not only the parameter.
func cutModule(name, prefix string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(name, prefix)
	return rest, ok && strings.Contains(rest, ".")
}

// before lists the segments that make a name of the base when put in front of a rest.
func (b *Base) before(rest string) []string {
	if b.fronts == nil {
		b.fronts = make(map[string][]string, len(b.names))
		for _, name := range b.sortedNames() {
			if first, rest, ok := strings.Cut(name, "."); ok {
				b.fronts[rest] = append(b.fronts[rest], first)
			}
		}
	}
	return b.fronts[rest]
}

// best returns the translation without a table that finds the most of the names; of several, the
// first in the order of section 4 of spec/APPLY.md.
func (b *Base) best(wanted []string) (best rename) {
	most := -1
	try := func(r rename, hits int) {
		if hits > most {
			best, most = r, hits
		}
	}
	for _, left := range frameworks {
		asIs, cuts, adds := 0, make(map[string]int), make(map[string]int)
		for _, name := range wanted {
			rest, ok := cutModule(name, left)
			if !ok {
				continue
			}
			if b.Has(rest) {
				asIs++
			}
			segment, inner, _ := strings.Cut(rest, ".")
			if strings.Contains(inner, ".") && b.Has(inner) {
				cuts[segment+"."]++
			}
			for _, segment := range b.before(rest) {
				adds[segment+"."]++
			}
		}
		try(rename{cut: left}, asIs)
		for _, segment := range trunkFirst(cuts) {
			try(rename{cut: left + segment}, cuts[segment])
		}
		for _, segment := range trunkFirst(adds) {
			try(rename{cut: left, add: segment}, adds[segment])
		}
	}
	return best
}

// trunkFirst lists the keys of a map in the order in which they are tried.
func trunkFirst(hits map[string]int) []string {
	all := slices.Sorted(maps.Keys(hits))
	if i, ok := slices.BinarySearch(all, trunk); ok {
		all = slices.Insert(slices.Delete(all, i, i+1), 0, trunk)
	}
	return all
}
