package naming

// Pair finds which names of one checkpoint mean which names of another one of the same model: as
// they are, under another prefix, or under the names of the other version of transformers, by the
// tables that an adapter's names are found by. The translation that pairs most names is taken, and
// names as they are where none pairs more; how says it in words, "" for names as they are. pairs
// maps the names of tuned to those of base. Where no name is in both, ambiguous lists the
// translations that fit equally well.
func Pair(base, tuned []string) (pairs map[string]string, how string, ambiguous []string) {
	asTheyAre := pairsOf(Mapping{base: Index(base)}, tuned, false)
	best := asTheyAre
	for _, side := range []struct {
		in, wanted []string
		turned     bool
	}{{base, tuned, false}, {tuned, base, true}} {
		if len(asTheyAre) == min(len(base), len(tuned)) {
			break // nothing is left to pair
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
		if found := pairsOf(m, side.wanted, side.turned); len(found) > len(best) {
			best, how = found, m.Describe()
		}
	}
	if len(best) > 0 {
		ambiguous = nil
	}
	return best, how, ambiguous
}

// pairsOf looks every name up; turned says that it is the names found that are the keys. The
// parameters of no module, whose names have no dot, are never renamed.
func pairsOf(m Mapping, wanted []string, turned bool) map[string]string {
	pairs := make(map[string]string, len(wanted))
	for _, name := range wanted {
		plain := StripWrappers(name)
		found, ok := m.Lookup(plain)
		if Module(plain) == "" {
			found, ok = m.base.byName[plain]
		}
		switch {
		case ok && turned:
			pairs[found] = name
		case ok:
			pairs[name] = found
		}
	}
	return pairs
}
