package arch

import (
	"go/ast"
	"go/types"
	"slices"
	"testing"
)

// mostMethods is the largest number of methods of a type.
const mostMethods = 20

// manyMethods lists the types with more, and their number, which may only decrease. Types that read
// a grammar may stay.
var manyMethods = map[string]int{
	"format.scanner":            26, // the grammar of a manifest
	"internal/jsontext.Scanner": 33, // the grammar of JSON
}

// TestTypesHaveFewMethods counts the methods declared for a type, with and without pointer.
func TestTypesHaveFewMethods(t *testing.T) {
	for _, p := range typedModule(t) {
		for _, name := range p.types.Scope().Names() {
			named, ok := types.Unalias(p.types.Scope().Lookup(name).Type()).(*types.Named)
			if !ok || named.Obj().Pkg() != p.types || named.Obj().Name() != name {
				continue
			}
			name = p.room + "." + name
			allowed, onList := manyMethods[name]
			switch n := named.NumMethods(); {
			case onList && n <= mostMethods:
				t.Logf("%s has %d methods, which is few enough: take it off the list", name, n)
			case onList && n > allowed:
				t.Errorf("%s has %d methods, the list has %d", name, n, allowed)
			case !onList && n > mostMethods:
				t.Errorf("%s has %d methods, want at most %d", name, n, mostMethods)
			}
		}
	}
}

// longFunction is the largest number of lines of 95 % of a package's functions.
const longFunction = 40

// TestFunctionsAreShort measures functions and methods, but not the literals inside them, from the
// word func to the closing brace.
func TestFunctionsAreShort(t *testing.T) {
	var all []int
	for _, p := range typedModule(t) {
		var lengths []int
		for _, f := range p.files {
			if ast.IsGenerated(f) {
				continue
			}
			for _, d := range f.Decls {
				if d, ok := d.(*ast.FuncDecl); ok {
					lengths = append(lengths, lines(d))
				}
			}
		}
		all = append(all, lengths...)
		n := percentile95(lengths)
		t.Logf("%s: %d functions, 95 of 100 have at most %d lines", p.room, len(lengths), n)
		if n > longFunction {
			t.Errorf("%s: 95 of 100 functions have at most %d lines, want %d", p.room, n, longFunction)
		}
	}
	if n := percentile95(all); n > longFunction {
		t.Errorf("the module: 95 of 100 functions have at most %d lines, want %d", n, longFunction)
	}
}

func percentile95(lengths []int) int {
	if len(lengths) == 0 {
		return 0
	}
	slices.Sort(lengths)
	return lengths[(len(lengths)*95+99)/100-1]
}
