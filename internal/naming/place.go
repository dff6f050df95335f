package naming

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// place returns the part of a name that locates its tensor in the model, without any prefix: from
// the stack of layers on (layers.0.self_attn.q_proj.weight), or module and parameter
// (lm_head.weight).
func place(name string) string {
	parts := strings.Split(name, ".")
	from := max(0, len(parts)-2)
	if i := slices.IndexFunc(parts, hasNumber); i > 0 {
		from = i - 1
	}
	return strings.Join(parts[from:], ".")
}

// at lists the names of the base at a place, sorted.
func (b *Base) at(where string) []string {
	if b.places == nil {
		b.places = make(map[string][]string, len(b.names))
		for _, name := range b.sortedNames() {
			b.places[place(name)] = append(b.places[place(name)], name)
		}
	}
	return b.places[where]
}

// near finds a tensor of the base by its name, or by its place under any prefix. Use it for
// messages only: the two halves of a model can use the same places.
func (b *Base) near(name string) (actual string, ok bool) {
	if actual, ok = b.find(name); ok {
		return actual, true
	}
	if all := b.at(place(name)); len(all) > 0 {
		return b.Actual(all[0]), true
	}
	return "", false
}

// deeper lists the translations that put every name in the base by adding or removing segments
// before its place: SmolVLM has "model.text_model." where its text model has "model.", and PEFT's
// prefix can follow the name of the part that it wraps. They are tried last, the smallest change
// first, and used only if exactly one fits.
func (b *Base) deeper(wanted []string) (full []rename) {
	changes := make(map[int][]rename)
	seen := make(map[rename]bool)
	for _, probe := range wanted {
		where := place(probe)
		was := strings.TrimSuffix(probe, where)
		for _, name := range b.at(where) {
			c, size, ok := prefixChange(was, strings.TrimSuffix(name, where))
			if ok && !seen[c] {
				seen[c] = true
				changes[size] = append(changes[size], c)
			}
		}
	}
	for _, size := range slices.Sorted(maps.Keys(changes)) {
		fits := b.among(wanted, changes[size])
		switch {
		case full == nil:
			full = fits
		case len(full) == 1 && isOfSenses(full[0].add):
			full = append(full, fits...) // the nearest may be the wrong half of a model
		}
	}
	return full
}

// hasAll reports whether the base has every name under a translation.
func (b *Base) hasAll(r rename, names []string) bool {
	for _, name := range names {
		if _, ok := (Mapping{b, r}).Lookup(name); !ok {
			return false
		}
	}
	return true
}

// prefixChange returns the translation between two prefixes if one contains all segments of the
// other, and the number of segments that differ. Prefixes of frameworks do not count.
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

// cutLast removes the last segment of a prefix, which ends with a dot.
func cutLast(prefix string) (rest, segment string) {
	trimmed := strings.TrimSuffix(prefix, ".")
	i := strings.LastIndexByte(trimmed, '.') + 1
	return trimmed[:i], trimmed[i:]
}

// plainSegments returns the segments of a prefix without those of frameworks.
func plainSegments(prefix string) []string {
	segments := strings.Split(strings.TrimSuffix(prefix, "."), ".")
	var plain []string
	for i := 0; i < len(segments); i++ {
		switch s := segments[i]; {
		case s == "base_model" && i+1 < len(segments) && segments[i+1] == "model":
			i++
		case s != "" && s != "module":
			plain = append(plain, s)
		}
	}
	return plain
}

// isWithin reports whether all contains every element of some, in the same order.
func isWithin(some, all []string) bool {
	for _, s := range all {
		if len(some) > 0 && some[0] == s {
			some = some[1:]
		}
	}
	return len(some) == 0
}

// senses are parts of the names of vision and audio modules.
var senses = []string{"vision", "visual", "vit", "image", "audio", "speech", "sound", "video", "talker"}

// isOfSenses reports whether a prefix belongs to the half of a model that sees or hears.
func isOfSenses(prefix string) bool {
	return slices.ContainsFunc(senses, func(s string) bool { return strings.Contains(prefix, s) })
}

// Like returns a name of the base to show beside a missing one, "" for an empty base. It prefers a
// name with the same last segments.
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

// cutNumber splits a place before its layer's number.
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

// sortedNames lists the base's names without wrappers, sorted so that messages are deterministic.
func (b *Base) sortedNames() []string {
	if b.sorted == nil {
		b.sorted = b.names
		if len(b.other) > 0 {
			b.sorted = slices.Sorted(b.all())
		}
	}
	return b.sorted
}

// Front returns the segments of a module's path before its first number, or its first segment.
func Front(module string) string {
	parts := strings.Split(module, ".")
	if i := slices.IndexFunc(parts, hasNumber); i > 0 {
		return strings.Join(parts[:i], ".")
	}
	return parts[0]
}

// Swap returns the one replacement of a prefix, with a dot at its end or empty, that puts every
// wanted name in the base; of several the one that leaves the most of the names. It can swap one
// part of a model for another one, so Match does not use it. ok is false if there is none, or if
// two leave equally much.
func Swap(b *Base, wanted []string) (from, to string, ok bool) {
	if len(wanted) == 0 {
		return "", "", false
	}
	probe := strings.Split(wanted[0], ".")
	longest, found := 2, make(map[rename]bool)
	for _, name := range b.sortedNames() {
		parts := strings.Split(name, ".")
		n := 0 // the segments at the end that are equal
		for n < min(len(probe), len(parts)) && probe[len(probe)-1-n] == parts[len(parts)-1-n] {
			n++
		}
		if n < longest {
			continue
		}
		front := func(parts []string) string {
			if len(parts) == n {
				return ""
			}
			return strings.Join(parts[:len(parts)-n], ".") + "."
		}
		r := rename{cut: front(probe), add: front(parts)}
		if found[r] || !b.hasAll(r, wanted) {
			continue
		}
		if n > longest {
			longest = n
			clear(found)
		}
		found[r] = true
	}
	for r := range found {
		return r.cut, r.add, len(found) == 1
	}
	return "", "", false
}
