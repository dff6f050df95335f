package naming

import (
	"slices"
	"strings"
)

// unwrap lets X.weight stand for X.base_layer.weight, as a model has it around which PEFT has put
// layers of its own: one that was saved so, or that has adapters built in, as Phi-4-multimodal
// does (spec/NAMES.md, section 4).
func unwrap(b *Base) {
	inner := make(map[string]string) // by the name without the layers, "" for several
	for plain := range b.all() {
		name, isWrapped := withoutLayers(plain)
		if !isWrapped || b.Has(name) {
			continue
		}
		if _, twice := inner[name]; twice {
			inner[name] = ""
			continue
		}
		inner[name] = plain
	}
	for name, plain := range inner {
		if plain != "" {
			b.other[name] = b.Actual(plain)
		}
	}
}

// withoutLayers removes the segments base_layer before the last segment of a name.
func withoutLayers(name string) (inner string, isWrapped bool) {
	if !strings.Contains(name, nesting+".") {
		return name, false
	}
	module, leaf := Module(name), Leaf(name)
	for strings.HasSuffix(module, nesting) {
		module, isWrapped = strings.TrimSuffix(module, nesting), true
	}
	return join(module, leaf), isWrapped && module != ""
}

// Wrapped returns the first of some names of a base that stands for a tensor inside a layer of
// PEFT, by the base's own name for that, and the tensors of adapters in the base, sorted.
func Wrapped(b *Base, names []string) (inner string, ofAdapters []string) {
	for _, name := range names {
		actual := b.Actual(name)
		if _, isWrapped := withoutLayers(StripWrappers(actual)); isWrapped && actual != name {
			inner = actual
			break
		}
	}
	if inner == "" {
		return "", nil
	}
	for _, name := range b.sortedNames() {
		if ofAdapter.MatchString(name) {
			ofAdapters = append(ofAdapters, b.Actual(name))
		}
	}
	return inner, slices.Compact(ofAdapters)
}

// Shapes returns the shapes of all tensors of a base, by their names without wrappers and layers of
// PEFT. shapeOf takes the base's own names.
func Shapes(b *Base, shapeOf func(name string) []uint64) map[string][]uint64 {
	shapes := make(map[string][]uint64, len(b.names))
	for name := range b.all() {
		actual := b.Actual(name)
		if inner, isWrapped := withoutLayers(name); !isWrapped || b.Actual(inner) != actual {
			shapes[name] = shapeOf(actual)
		}
	}
	return shapes
}
