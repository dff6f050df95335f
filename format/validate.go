package format

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// Validate checks the manifest of a source that did not come from a file. It checks rules R29, R30
// and R34 to R54 of spec/FORMAT.md, R71 to R73 of version 1.1, R133 to R136 of spec/METHODS.md, and
// that the factors of a convolution or of experts have two or more dimensions. Code that merges,
// decomposes or writes a validated source need not check any index, rank or number of dimensions
// again. Readers of files return valid manifests; a function that takes a [Source] from a program
// calls Validate first. It reads no blob and changes nothing.
func Validate(m *Manifest) error {
	if m == nil {
		return noManifest()
	}
	for i := range m.Tensors {
		if t := &m.Tensors[i]; t.DType.Bits() == 0 {
			return broken(29, "tensor %d, %q, has no dtype", i, t.Name)
		}
	}
	for i := range m.Adapters {
		if err := validateWords(&m.Adapters[i]); err != nil {
			return about(err, fmt.Sprintf("adapter %q", m.Adapters[i].Name))
		}
	}
	if err := validate(m, nil); err != nil {
		return err
	}
	for i := range m.Adapters {
		a := &m.Adapters[i]
		for j := range a.Layers {
			if err := validateStacks(m, &a.Layers[j]); err != nil {
				return about(err, fmt.Sprintf("adapter %q, layer %q", a.Name, a.Layers[j].Module))
			}
		}
	}
	return nil
}

func noManifest() error { return fault.New(ErrCorrupt, "the source has no manifest") }

// validateWords checks the enumerated words and the numbers of an adapter. For a file,
// parseManifest checks them while reading.
func validateWords(a *Adapter) error {
	switch a.Orientation {
	case OrientationUnknown, MxN, NxM:
	default:
		return broken(29, "unknown orientation %q", a.Orientation)
	}
	for i := range a.Layers {
		l := &a.Layers[i]
		if !slices.Contains(kinds, l.Kind) {
			return broken(29, "layer %q: unknown kind %q", l.Module, l.Kind)
		}
		switch l.Scaling {
		case AlphaOverR, AlphaOverSqrtR, Fixed:
		default:
			return broken(29, "layer %q: unknown scaling %q", l.Module, l.Scaling)
		}
		for _, x := range []float64{l.Alpha, l.Fixed} {
			if math.IsNaN(x) || math.IsInf(x, 0) {
				return broken(30, "layer %q: alpha is %v and the fixed scale %v, want finite numbers", l.Module, l.Alpha, l.Fixed)
			}
		}
	}
	for i := range a.Beside {
		switch a.Beside[i].Action {
		case Replace, Rows, Opaque, Difference:
		default:
			return broken(29, "beside %d: unknown action %q", i, a.Beside[i].Action)
		}
	}
	return nil
}

// validateStacks checks the kinds whose shapes the specification leaves open. A begins with a
// dimension of ranks, B with a dimension of outputs, and both have a second dimension.
func validateStacks(m *Manifest, l *Layer) error {
	if l.Kind != Conv && !l.Kind.IsExpert() {
		return nil
	}
	a, b := m.Tensors[l.Roles[RoleA]].Shape, m.Tensors[l.Roles[RoleB]].Shape
	if len(a) < 2 || len(b) < 2 {
		return fault.New(ErrCorrupt, "A has shape %d and B %d, want two dimensions or more", a, b)
	}
	return nil
}

// validate checks the records of a manifest against each other: R34 to R54. Later code may rely on
// the result: indices are in range, and tensors are whole numbers of bytes that fit an int64. With
// nil codings all tensors are raw.
func validate(m *Manifest, codings []coding) error {
	if len(m.Tensors) > maxTensors {
		return broken(49, "%d tensors, the limit is %d", len(m.Tensors), maxTensors)
	}
	for i := range m.Tensors {
		c := raw
		if codings != nil {
			c = codings[i]
		}
		if err := validateTensor(&m.Tensors[i], c); err != nil {
			return err
		}
	}
	for i := range m.Attachments {
		if err := validatePath(m.Attachments[i].Name); err != nil {
			return err
		}
	}
	if len(m.Adapters) == 0 {
		return broken(34, "no adapters")
	}
	owners := make([]int, len(m.Tensors))
	for i := range m.Adapters {
		a := &m.Adapters[i]
		if a.Name == "" && len(m.Adapters) > 1 {
			return broken(35, "one of %d adapters has an empty name", len(m.Adapters))
		}
		if err := validateAdapter(m, a, i+1, owners); err != nil {
			return about(err, fmt.Sprintf("adapter %q", a.Name))
		}
	}
	if i := slices.Index(owners, 0); i >= 0 {
		return broken(46, "no record refers to tensor %d, %q", i, m.Tensors[i].Name)
	}
	return nil
}

func validateTensor(t *Tensor, c coding) error {
	if t.Name == "__metadata__" {
		return broken(48, "a tensor has the name %q", t.Name)
	}
	if len(t.Shape) > maxDims {
		return broken(50, "tensor %q has %d dimensions, the limit is %d", t.Name, len(t.Shape), maxDims)
	}
	elements, empty := uint64(1), false
	for _, d := range t.Shape {
		if d == 0 {
			empty = true
			continue
		}
		if elements > maxElements/d {
			return broken(51, "tensor %q of shape %d has more than %d elements", t.Name, t.Shape, int64(maxElements))
		}
		elements *= d
	}
	if empty {
		elements = 0
	}
	if _, ok := t.DType.NBytes(elements); !ok {
		return broken(52, "tensor %q, %v of shape %d, is not a whole number of bytes", t.Name, t.DType, t.Shape)
	}
	if c == planes && !t.DType.IsFloat() {
		return broken(53, "tensor %q has coding planes and dtype %v, want a float dtype", t.Name, t.DType)
	}
	return nil
}

// validatePath checks the name of an attachment.
func validatePath(name string) error {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, `\:`) {
			return broken(54, "attachment %q: a name must not contain the part %q", name, part)
		}
	}
	return nil
}

// validateAdapter checks one adapter and writes its number, from 1 on, into owners for the tensors
// it refers to. Adapters may share tensors.
func validateAdapter(m *Manifest, a *Adapter, number int, owners []int) error {
	if a.Method != MethodLoRA && len(a.Requires) == 0 {
		return broken(36, "method %q needs a requirement, got none", a.Method)
	}
	names := make([]string, 0, len(owners))
	refer := func(i int) error {
		if i < 0 || i >= len(owners) {
			return broken(45, "tensor index %d, want less than %d", i, len(owners))
		}
		if owners[i] == number {
			return broken(46, "tensor %d, %q, is referred to twice", i, m.Tensors[i].Name)
		}
		owners[i] = number
		names = append(names, m.Tensors[i].Name)
		return nil
	}
	var roles []Role // one list for all layers
	for i := range a.Layers {
		l := &a.Layers[i]
		roles = appendRoles(roles[:0], l)
		for _, role := range roles {
			if err := refer(l.Roles[role]); err != nil {
				return about(err, fmt.Sprintf("layer %q, role %q", l.Module, role))
			}
		}
		if err := validateLayer(m, l); err != nil {
			return about(err, fmt.Sprintf("layer %q", l.Module))
		}
	}
	for i := range a.Beside {
		b := &a.Beside[i]
		if err := refer(b.Tensor); err != nil {
			return about(err, fmt.Sprintf("beside %d", i))
		}
		t := &m.Tensors[b.Tensor]
		if err := validateRows(b, t); err != nil {
			return about(err, fmt.Sprintf("beside tensor %q", t.Name))
		}
	}
	slices.Sort(names)
	for i := range names {
		if i > 0 && names[i] == names[i-1] {
			return broken(47, "two tensors have the name %q", names[i])
		}
	}
	return nil
}

// rolesOf returns the roles of a layer in ascending order.
func rolesOf(l *Layer) []Role { return appendRoles(make([]Role, 0, len(l.Roles)), l) }

func appendRoles(roles []Role, l *Layer) []Role {
	for role := range l.Roles {
		roles = append(roles, role)
	}
	slices.Sort(roles)
	return roles
}

// validateLayer checks the shapes of a layer.
func validateLayer(m *Manifest, l *Layer) error {
	if l.Rank < 1 || l.Rank > MaxRank {
		return broken(37, "rank %d, want 1 to %d", l.Rank, MaxRank)
	}
	if err := validateMagnitudes(l); err != nil {
		return err
	}
	ia, hasA := l.Roles[RoleA]
	ib, hasB := l.Roles[RoleB]
	if l.Kind.isMethod() {
		return validateMethod(m, l)
	}
	if l.Kind != Other && !(hasA && hasB) {
		return broken(38, "kind %q needs the roles A and B", l.Kind)
	}
	if l.Kind.saysDimension() {
		return validateSquareExperts(l, m.Tensors[ia].Shape, m.Tensors[ib].Shape)
	}
	if i, ok := l.Roles[RoleCore]; ok && l.Kind == Conv {
		return validateCore(l, m.Tensors[ia].Shape, m.Tensors[ib].Shape, m.Tensors[i].Shape)
	}
	if l.Kind != Linear && l.Kind != Embedding {
		return nil
	}
	r := uint64(l.Rank)
	a, b := m.Tensors[ia].Shape, m.Tensors[ib].Shape
	if len(a) != 2 || a[0] != r {
		return broken(39, "A has shape %d, want r×n with r = %d", a, r)
	}
	if len(b) != 2 || b[1] != r {
		return broken(40, "B has shape %d, want m×r with r = %d", b, r)
	}
	elements := func(role Role) (uint64, bool) {
		i, ok := l.Roles[role]
		if !ok {
			return 0, false
		}
		n, _ := dtype.NElements(m.Tensors[i].Shape)
		return n, true
	}
	if n, ok := elements(RoleBias); ok && n != b[0] {
		return broken(41, "bias has %d elements, want m = %d", n, b[0])
	}
	if n, ok := elements(RoleMagnitude); ok && n != b[0] && n != a[1] {
		return broken(42, "magnitude has %d elements, want m = %d or n = %d", n, b[0], a[1])
	}
	return nil
}

// validateSquareExperts checks a layer whose kind says which dimension A reads.
func validateSquareExperts(l *Layer, a, b []uint64) error {
	if len(a) != 2 || len(b) != 2 || a[0] != b[1] || a[0] == 0 || a[0]%uint64(l.Rank) != 0 {
		return broken(71, "A has shape %d and B %d, want (E·r)×n and n×(E·r) with r = %d", a, b, l.Rank)
	}
	if a[1] != b[0] {
		return broken(72, "kind %q: A has %d columns and B has %d rows, want equal numbers", l.Kind, a[1], b[0])
	}
	if len(l.Roles) != 2 {
		return broken(73, "kind %q has %d roles, want only A and B", l.Kind, len(l.Roles))
	}
	return nil
}

// validateRows checks the rows of a beside record.
func validateRows(b *Beside, t *Tensor) error {
	if b.Action != Rows {
		return nil
	}
	if len(t.Shape) == 0 || t.Shape[0] != uint64(len(b.Rows)) {
		return broken(44, "%d rows are listed for a tensor of shape %d", len(b.Rows), t.Shape)
	}
	sorted := slices.Clone(b.Rows)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
	for i := range sorted {
		if i > 0 && sorted[i] == sorted[i-1] {
			return broken(43, "row %d is listed twice", sorted[i])
		}
	}
	return nil
}
