package format

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
)

// method lists the parts of a kind of version 1.2 (spec/METHODS.md, section 2). Each part is stored
// in one of several ways: some roles, each with its shape.
type method []part

type part []map[Role]shape

// shape has a letter for each dimension; equal letters in a layer mean equal numbers. The letter r
// is the rank. A last letter k stands for the dimensions of the kernel: one or more, or none as
// well where it is written k?. A capital stands for the product of all dimensions from there on,
// one or more.
type shape string

// methods has the kinds of version 1.2.
var methods = map[Kind]method{
	Hadamard: {{
		{RoleW1A: "m r", RoleW1B: "r N", RoleW2A: "m r", RoleW2B: "r N"},
		{
			RoleW1A: "r m", RoleW1B: "r n", RoleT1: "r r k",
			RoleW2A: "r m", RoleW2B: "r n", RoleT2: "r r k",
		},
	}},
	Kronecker: {
		{{RoleW1: "o i"}, {RoleW1A: "o r", RoleW1B: "r i"}},
		{
			{RoleW2: "p j k?"},
			{RoleW2A: "p r", RoleW2B: "r J"},
			{RoleW2A: "r p", RoleW2B: "r j", RoleT2: "r r k"},
		},
	},
	OutputScaling: {{{RoleVector: "M"}}},
	InputScaling:  {{{RoleVector: "N"}}},
}

// ValidateLayer checks the rank, the roles and the shapes of a layer whose tensors are those of m.
// For the kinds whose shapes the specification leaves open it checks the roles.
func ValidateLayer(m *Manifest, l *Layer) error { return validateLayer(m, l) }

// validateMethod checks the roles and the shapes of a layer of version 1.2. Roles beside those of
// the table are free, as in every layer.
func validateMethod(m *Manifest, l *Layer) error {
	b := binding{values: map[string][]uint64{"r": {uint64(l.Rank)}}}
	used := make(map[Role]bool)
	for _, p := range methods[l.Kind] {
		way := p.way(l)
		if way == nil {
			return broken(133, "kind %q has the roles %q, want those of spec/METHODS.md", l.Kind, rolesOf(l))
		}
		for _, role := range sortedRoles(way) {
			used[role] = true
			if got := m.Tensors[l.Roles[role]].Shape; !b.bind(way[role], got) {
				return broken(134, "role %q has shape %d, want %s with rank %d and the shapes of the other roles",
					role, got, way[role], l.Rank)
			}
		}
	}
	for role := range l.Roles {
		if !used[role] && isOfFactors(role) {
			return broken(133, "kind %q has the role %q beside %q", l.Kind, role, rolesOf(l))
		}
	}
	if !b.usesRank && l.Rank != 1 {
		return broken(134, "rank %d of a layer without factors, want 1", l.Rank)
	}
	return nil
}

// way returns the stored form of a part that the roles of a layer have, the one with the most
// roles; nil if there is none.
func (p part) way(l *Layer) (found map[Role]shape) {
	for _, way := range p {
		isThere := true
		for role := range way {
			_, ok := l.Roles[role]
			isThere = isThere && ok
		}
		if isThere && len(way) > len(found) {
			found = way
		}
	}
	return found
}

// isOfFactors reports whether a role is one of the table, or one that goes with A and B.
func isOfFactors(role Role) bool {
	if slices.Contains([]Role{RoleA, RoleB, RoleBias, RoleCore}, role) {
		return true
	}
	for _, method := range methods {
		for _, p := range method {
			for _, way := range p {
				if way[role] != "" {
					return true
				}
			}
		}
	}
	return false
}

func sortedRoles(way map[Role]shape) []Role {
	roles := make([]Role, 0, len(way))
	for role := range way {
		roles = append(roles, role)
	}
	slices.Sort(roles)
	return roles
}

// binding holds the numbers that the letters of a layer's shapes stand for.
type binding struct {
	values   map[string][]uint64
	usesRank bool
}

// bind compares dimensions with a shape. A letter seen for the first time takes their number; none
// is 0.
func (b *binding) bind(want shape, got []uint64) bool {
	if slices.Contains(got, 0) {
		return false
	}
	for letter := range strings.FieldsSeq(string(want)) {
		n := 1
		switch letter {
		case "M", "N", "J":
			if len(got) == 0 {
				return false
			}
			product, ok := dtype.NElements(got)
			if !ok {
				return false
			}
			got = []uint64{product}
		case "k", "k?":
			n = len(got)
			if n == 0 && letter == "k" {
				return false
			}
			letter = "k"
		case "r":
			b.usesRank = true
		}
		if n > len(got) {
			return false
		}
		if known, ok := b.values[letter]; ok && !slices.Equal(known, got[:n]) {
			return false
		}
		b.values[letter], got = got[:n], got[n:]
	}
	return len(got) == 0
}

// validateCore checks a convolution with a core: A is r×n×1×…, B m×r×1×…, and the core r×r×kernel,
// all with as many dimensions.
func validateCore(l *Layer, a, b, core []uint64) error {
	r, isOther := uint64(l.Rank), func(n uint64) bool { return n != 1 }
	switch {
	case len(core) < 3, len(a) != len(core), len(b) != len(core),
		slices.Contains(slices.Concat(a, b, core), 0), a[0] != r, b[1] != r, core[0] != r, core[1] != r,
		slices.ContainsFunc(a[2:], isOther), slices.ContainsFunc(b[2:], isOther):
		return broken(135, "A has shape %d, B %d and the core %d, want r×n×1×…, m×r×1×… and "+
			"r×r×kernel with r = %d", a, b, core, l.Rank)
	}
	return nil
}

// validateMagnitudes checks that the magnitudes of a layer are of one kind.
func validateMagnitudes(l *Layer) error {
	_, ofOutputs := l.Roles[RoleMagnitude]
	_, ofInputs := l.Roles[RoleInputMagnitude]
	if ofOutputs && ofInputs {
		return broken(136, "the layer has the roles %q and %q, want one of them", RoleMagnitude, RoleInputMagnitude)
	}
	return nil
}

// String shows the shape with ×.
func (s shape) String() string {
	return strings.NewReplacer(" k?", " [kernel]", " k", " kernel", " ", "×").Replace(string(s))
}
