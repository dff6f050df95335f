package naming

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// place returns the part of a name that says where in the model its tensor is, whatever stands in
// front: from the stack of layers on, layers.0.self_attn.q_proj.weight, or else the module and the
// parameter, lm_head.weight.
func place(name string) string {
	parts := strings.Split(name, ".")
	from := max(0, len(parts)-2)
	if i := slices.IndexFunc(parts, hasNumber); i > 0 {
		from = i - 1
	}
	return strings.Join(parts[from:], ".")
}

// at lists the names of the base that have a place, sorted.
func (b *Base) at(where string) []string {
	if b.places == nil {
		b.places = make(map[string][]string, len(b.byName))
		for _, name := range b.sortedNames() {
			b.places[place(name)] = append(b.places[place(name)], name)
		}
	}
	return b.places[where]
}

// near finds a tensor of the base by its name, or else by its place, under whatever prefix. Only a
// message may rest on it: the two halves of a model have places of the same names.
func (b *Base) near(name string) (actual string, ok bool) {
	if b.Has(name) {
		return b.byName[name], true
	}
	if all := b.at(place(name)); len(all) > 0 {
		return b.byName[all[0]], true
	}
	return "", false
}

// deeper lists the translations under which every name is in the base with segments more, or
// less, in front of its place: SmolVLM's "model.text_model." for the "model." of its text model, or
// PEFT's prefix behind the name of the part that it wraps. They are tried last, the smallest change
// first, and used only where one alone fits.
func (b *Base) deeper(wanted []string) (full []rename) {
	changes := make(map[int][]rename)
	for _, probe := range []string{wanted[0], wanted[len(wanted)/2], wanted[len(wanted)-1]} {
		was := strings.TrimSuffix(probe, place(probe))
		for _, name := range b.at(place(probe)) {
			c, size, ok := prefixChange(was, strings.TrimSuffix(name, place(name)))
			if ok && !slices.Contains(changes[size], c) {
				changes[size] = append(changes[size], c)
			}
		}
	}
	for _, size := range slices.Sorted(maps.Keys(changes)) {
		var fits []rename
		for _, c := range changes[size] {
			isLike := func(f rename) bool { return same(f, c, wanted) }
			if len(fits) < enough && b.hasAll(c, wanted) && !slices.ContainsFunc(fits, isLike) {
				fits = append(fits, c)
			}
		}
		switch {
		case full == nil:
			full = fits
		case len(full) == 1 && isOfSenses(full[0].add):
			full = append(full, fits...) // what is nearest may be the wrong half of a model
		}
	}
	return full
}

// hasAll reports whether every name is in the base under a translation.
func (b *Base) hasAll(r rename, names []string) bool {
	for _, name := range names {
		if _, ok := (Mapping{b, r}).Lookup(name); !ok {
			return false
		}
	}
	return true
}

// prefixChange returns the translation of a prefix to another one that has all its segments and
// some more, or some less, and how many. What frameworks add does not count. No prefix is
// exchanged.
func prefixChange(was, is string) (c rename, size int, ok bool) {
	have, want := plainSegments(was), plainSegments(is)
	size = len(want) - len(have)
	switch {
	case size >= 0 && isWithin(have, want):
	case size < 0 && isWithin(want, have) && !isOfSenses(was):
		size = -size
	default:
		return rename{}, 0, false
	}
	for {
		rest, segment := cutLast(was)
		other, same := cutLast(is)
		if segment != same || segment == "" {
			break
		}
		was, is = rest, other
	}
	return rename{cut: was, add: is, keep: was != ""}, size, true
}

// cutLast takes the last segment off a prefix, which ends with a dot.
func cutLast(prefix string) (rest, segment string) {
	trimmed := strings.TrimSuffix(prefix, ".")
	i := strings.LastIndexByte(trimmed, '.') + 1
	return trimmed[:i], trimmed[i:]
}

// plainSegments are the segments of a prefix without those of frameworks.
func plainSegments(prefix string) []string {
	prefix = strings.ReplaceAll("."+prefix, ".base_model.model.", ".")
	prefix = strings.ReplaceAll(prefix, ".module.", ".")
	return strings.FieldsFunc(prefix, func(r rune) bool { return r == '.' })
}

// isWithin reports whether all of one list are in another one, in the same order.
func isWithin(some, all []string) bool {
	for _, s := range all {
		if len(some) > 0 && some[0] == s {
			some = some[1:]
		}
	}
	return len(some) == 0
}

// senses are parts of the names of what sees and hears, in models of more than text.
var senses = []string{"vision", "visual", "vit", "image", "audio", "speech", "sound", "video", "talker"}

// isOfSenses reports whether a prefix is that of the half of a model that sees or hears.
func isOfSenses(prefix string) bool {
	return slices.ContainsFunc(senses, func(s string) bool { return strings.Contains(prefix, s) })
}

// Like returns a name of the base to show beside one that it lacks, "" for an empty base: one with
// the same last segments, or any.
func (b *Base) Like(name string) string {
	leaf := Leaf(Module(name))
	all := b.sortedNames()
	for _, like := range []func(string) bool{
		func(s string) bool { return leaf != "" && Leaf(Module(s)) == leaf },
		func(s string) bool { return hasNumber(s) && strings.HasSuffix(s, ".weight") },
		func(string) bool { return true },
	} {
		if i := slices.IndexFunc(all, like); i >= 0 {
			return all[i]
		}
	}
	return ""
}

// cutNumber splits a place before the number of its layer.
func cutNumber(place string) (head, rest string, ok bool) {
	head, rest, _ = strings.Cut(place, ".")
	_, ok = leadingNumber(rest)
	return head, rest, ok
}

// leadingNumber reads the first segment of a path.
func leadingNumber(path string) (n int, ok bool) {
	first, _, _ := strings.Cut(path, ".")
	n, err := strconv.Atoi(first)
	return n, err == nil && n >= 0 && n < 1<<30
}

// sortedNames lists the names of the base without wrappers, so that a message is always the same.
func (b *Base) sortedNames() []string {
	if b.sorted == nil {
		b.sorted = slices.Sorted(maps.Keys(b.byName))
	}
	return b.sorted
}
