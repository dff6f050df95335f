package convert

import (
	"regexp"
	"slices"
	"strconv"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// Some programs stack the experts of a layer where others have a module for each.

// oneExpert matches the module of one expert.
var oneExpert = regexp.MustCompile(`^(.*\.experts)\.(0|[1-9][0-9]{0,5})\.([a-z0-9_]+)$`)

// expertStacks sorts layers of single experts: by the module without the number, and by the number.
type expertStacks map[string]map[int]*format.Layer

// add adds a layer, and returns false for one that is of no expert.
func (s expertStacks) add(l *format.Layer) bool {
	e := oneExpert.FindStringSubmatch(l.Module)
	if e == nil {
		return false
	}
	n, _ := strconv.Atoi(e[2])
	module := e[1] + "." + e[3]
	if s[module] == nil {
		s[module] = make(map[int]*format.Layer)
	}
	s[module][n] = l
	return true
}

// stackedFactors are A and B of all experts, one expert after the other.
type stackedFactors struct {
	first   *format.Layer // of an expert that the adapter changes
	factors map[format.Role]*factor
	shapes  map[format.Role][]uint64 // of three dimensions
}

// stackExperts stacks the factors of the experts of a module in a base with n of them. The factors
// of experts that the adapter does not change are zeros. factorOf makes the factor of a tensor, and
// file says which files hold stacks.
func stackExperts(
	m *format.Manifest, module string, experts map[int]*format.Layer, n int, factorOf func(int) *factor, file string,
) (*stackedFactors, error) {
	var first *format.Layer
	last := 0
	for e, l := range experts {
		if first == nil || e < last {
			first = l
		}
		last = max(last, e)
	}
	if n == 0 {
		return nil, fault.New(fault.Unsupported, "the adapter changes %d experts of %q, and nothing says how many the base has",
			len(experts), module).WithHint("name the base, whose config.json says it (CreateOptions.BaseConfig)")
	}
	if last >= n {
		return nil, fault.New(fault.Mismatch, "the adapter changes expert %d of %q, and the base has %d", last, module, n)
	}
	s := &stackedFactors{first: first, factors: make(map[format.Role]*factor), shapes: make(map[format.Role][]uint64)}
	for _, role := range []format.Role{roleA, roleB} {
		shape := m.Tensors[first.Roles[role]].Shape
		s.shapes[role] = []uint64{uint64(n), shape[0], shape[1]}
		stack := &factor{shape: []uint64{uint64(n) * shape[0], shape[1]}}
		for e := range n {
			l := experts[e]
			if l == nil {
				continue
			}
			i := l.Roles[role]
			if !slices.Equal(m.Tensors[i].Shape, shape) || l.Scale() != first.Scale() {
				return nil, fault.New(fault.Unsupported, "the experts of %q differ in rank, shape or scale, and %s stacks their factors: %q",
					module, file, l.Module).WithHint("keep the adapter as a .lora file")
			}
			one := factorOf(i)
			if stack.dtype != one.dtype && stack.blocks != nil {
				return nil, fault.New(fault.Unsupported, "the factors of the experts of %q have several dtypes: %q", module, l.Module)
			}
			stack.dtype = one.dtype
			block := one.blocks[0]
			block.row = e * int(shape[0])
			for row := range int(shape[0]) {
				block.rows = append(block.rows, row)
			}
			stack.blocks = append(stack.blocks, block)
		}
		s.factors[role] = stack
	}
	return s, nil
}
