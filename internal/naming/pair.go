package naming

// Pair matches the names of two checkpoints of one model: unchanged, under another prefix, or under
// the names of another transformers version (the tables for adapters apply). It takes the
// translation that pairs most names, and prefers unchanged names. pairs maps names of tuned to
// names of base; how describes the translation, "" for none. If no name pairs, ambiguous lists the
// translations that fit equally well.
func Pair(base, tuned []string) (pairs map[string]string, how string, ambiguous []string) {
	asTheyAre := pairsOf(Mapping{base: Index(base)}, tuned, false)
	best := asTheyAre
	for _, side := range []struct {
		in, wanted []string
		swapped    bool
	}{{base, tuned, false}, {tuned, base, true}} {
		if len(asTheyAre) == min(len(base), len(tuned)) {
			break // every name is paired
		}
		plain := make([]string, len(side.wanted))
		for i, name := range side.wanted {
			plain[i] = StripWrappers(name)
		}
		m, _, several := Index(side.in).Match(plain)
		if len(several) > 0 {
			ambiguous = several
			continue
		}
		if found := pairsOf(m, side.wanted, side.swapped); len(found) > len(best) {
			best, how = found, m.Describe()
		}
	}
	if len(best) > 0 {
		ambiguous = nil
	}
	return best, how, ambiguous
}

// pairsOf looks up every name. If swapped, the names found become the keys. Parameters without a
// module, whose names have no dot, are never renamed.
func pairsOf(m Mapping, wanted []string, swapped bool) map[string]string {
	pairs := make(map[string]string, len(wanted))
	for _, name := range wanted {
		plain := StripWrappers(name)
		found, ok := m.Lookup(plain)
		if Module(plain) == "" {
			found, ok = m.base.find(plain)
		}
		switch {
		case ok && swapped:
			pairs[found] = name
		case ok:
			pairs[name] = found
		}
	}
	return pairs
}
