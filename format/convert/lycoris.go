package convert

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// This file holds the methods of LyCORIS (Yeh et al., arXiv:2309.14859) other than LoRA: their
// endings, and the layers of spec/METHODS.md that they make. The formulas are those of the forward
// pass of lycoris-lora.

// lyCORISTails are the endings of LyCORIS, and those of control adapters.
var lyCORISTails = []pairTail{
	{tail: "lora_mid.weight", role: format.RoleCore, kind: format.Conv, method: "LoCon"},
	{tail: "dora_scale", role: roleDoRAScale, method: "DoRA"},
	{tail: "hada_w1_a", role: format.RoleW1A, kind: format.Hadamard, method: loHa},
	{tail: "hada_w1_b", role: format.RoleW1B, kind: format.Hadamard, method: loHa},
	{tail: "hada_w2_a", role: format.RoleW2A, kind: format.Hadamard, method: loHa},
	{tail: "hada_w2_b", role: format.RoleW2B, kind: format.Hadamard, method: loHa},
	{tail: "hada_t1", role: format.RoleT1, kind: format.Hadamard, method: loHa},
	{tail: "hada_t2", role: format.RoleT2, kind: format.Hadamard, method: loHa},
	{tail: "lokr_w1", role: format.RoleW1, kind: format.Kronecker, method: loKr},
	{tail: "lokr_w1_a", role: format.RoleW1A, kind: format.Kronecker, method: loKr},
	{tail: "lokr_w1_b", role: format.RoleW1B, kind: format.Kronecker, method: loKr},
	{tail: "lokr_w2", role: format.RoleW2, kind: format.Kronecker, method: loKr},
	{tail: "lokr_w2_a", role: format.RoleW2A, kind: format.Kronecker, method: loKr},
	{tail: "lokr_w2_b", role: format.RoleW2B, kind: format.Kronecker, method: loKr},
	{tail: "lokr_t2", role: format.RoleT2, kind: format.Kronecker, method: loKr},
	{tail: "on_input", role: format.RoleAxis, kind: format.InputScaling, method: ia3},
	{tail: "diff", part: "weight", method: diff}, {tail: "diff_b", part: "bias", method: diff},
	{tail: "w_norm", part: "weight", method: diff}, {tail: "b_norm", part: "bias", method: diff},

	{tail: "oft_blocks", method: oft}, {tail: "oft_diag", method: "OFT (oft_diag)"},
	{tail: "rescale", method: oft},
	{tail: "a1.weight", method: gLoRA}, {tail: "a2.weight", method: gLoRA},
	{tail: "b1.weight", method: gLoRA}, {tail: "b2.weight", method: gLoRA},
	{tail: "bm.weight", method: gLoRA},
	{tail: "q_layer.weight", method: tLoRA}, {tail: "p_layer.weight", method: tLoRA},
	{tail: "lambda_layer", method: tLoRA},
	{tail: "bias_indices", method: sparse}, {tail: "bias_values", method: sparse},
	{tail: "bias_size", method: sparse},
	{tail: "set_weight", method: set}, {tail: "reshape_weight", method: set},
	{tail: "norm.key_norm.scale", method: set}, {tail: "norm.query_norm.scale", method: set},
}

// The methods of several endings. Set is that of Black Forest Labs' control adapters.
const (
	loHa   = "LoHa (hada_w1, hada_w2)"
	loKr   = "LoKr (lokr_w1, lokr_w2)"
	ia3    = "IA³ (on_input)"
	diff   = "differences"
	oft    = "OFT (oft_blocks)"
	boft   = "BOFT (oft_blocks)"
	gLoRA  = "GLoRA (a1, a2, b1, b2)"
	tLoRA  = "T-LoRA (q_layer, p_layer)"
	sparse = "sparse differences (bias_indices, bias_values)"
	set    = "set"
)

// roleDoRAScale is the role of dora_scale until nameMagnitude tells its axis.
const roleDoRAScale format.Role = "dora_scale"

// methodKeys parses the names of all tensors, and looks at the others of a module where a name is
// not enough. IA³ has vectors that end like any weight of a model; on_input beside one tells it.
// BOFT has the endings of OFT, and blocks with one dimension more.
func methodKeys(tensors []format.Tensor) []pairKey {
	keys := make([]pairKey, len(tensors))
	hasAxis, isBOFT := make(map[string]bool), make(map[string]bool)
	for i := range tensors {
		keys[i] = parsePair(tensors[i].Name)
		hasAxis[keys[i].module] = hasAxis[keys[i].module] || keys[i].role == format.RoleAxis
		isBOFT[keys[i].module] = isBOFT[keys[i].module] ||
			keys[i].tail == "oft_blocks" && len(tensors[i].Shape) == 4
	}
	for i := range keys {
		if keys[i].method == oft && isBOFT[keys[i].module] {
			keys[i].method, keys[i].feature = boft, requirement(format.FeatureLyCORIS, boft)
		}
		module, isWeight := strings.CutSuffix(keys[i].module, ".weight")
		if keys[i].tail == "" && isWeight && hasAxis[module] {
			keys[i] = pairKey{
				module: module, isPEFTs: keys[i].isPEFTs, tail: "weight",
				role: format.RoleVector, kind: format.InputScaling, method: ia3,
			}
		}
	}
	return keys
}

// difference adds a tensor that is a difference to the weight or the bias of its module.
func (c *collector) difference(i int, target string) {
	c.out.Beside = append(c.out.Beside, format.Beside{
		Action: format.Difference, Target: target, Tensor: i,
	})
	c.require(format.FeatureDifference, target)
}

// hasMethods reports whether the adapter has layers or differences of version 1.2.
func hasMethods(a *format.Adapter) bool {
	isMethod := func(l format.Layer) bool { return methodFeature[l.Kind] != "" }
	isDifference := func(b format.Beside) bool { return b.Action == format.Difference }
	return slices.ContainsFunc(a.Layers, isMethod) || slices.ContainsFunc(a.Beside, isDifference)
}

// methodFeature has the features of the kinds of version 1.2.
var methodFeature = map[format.Kind]format.Feature{
	format.Hadamard: format.FeatureHadamard, format.Kronecker: format.FeatureKronecker,
	format.InputScaling: format.FeatureScaling, format.OutputScaling: format.FeatureScaling,
}

// methodLayer completes a layer with roles of LyCORIS.
type methodLayer struct {
	*pairReader
	layer *format.Layer
	kind  format.Kind // "" for LoRA
}

// nameMagnitude gives a dora_scale the role that its shape tells: one number for each output is
// m×1×…, one for each input 1×n×…. LyCORIS wrote the second alone before version 3, OneTrainer and
// later versions write either.
func (m *methodLayer) nameMagnitude() {
	i, ok := m.layer.Roles[roleDoRAScale]
	if !ok {
		return
	}
	shape := m.tensors[i].Shape
	role := roleMagnitude
	if len(shape) > 1 && shape[0] == 1 && (shape[1] != 1 || m.outputs() != 1) {
		role = format.RoleInputMagnitude
	}
	if hasRole(m.layer.Roles, role) {
		m.require(format.FeatureTwice, m.tensors[i].Name)
	}
	renameRole(m.layer.Roles, roleDoRAScale, role)
}

// outputs returns m of a layer with sound shapes, 0 if it cannot be told.
func (m *methodLayer) outputs() uint64 {
	left := max(m.dim(format.RoleW1, 0), m.dim(format.RoleW1A, 0))
	switch m.kind {
	case format.Kronecker:
		if hasRole(m.layer.Roles, format.RoleT2) {
			return left * m.dim(format.RoleW2A, 1)
		}
		return left * max(m.dim(format.RoleW2, 0), m.dim(format.RoleW2A, 0))
	case format.Hadamard:
		if hasRole(m.layer.Roles, format.RoleT1) {
			return m.dim(format.RoleW1A, 1)
		}
		return left
	}
	return m.dim(roleB, 0)
}

// dim returns a dimension of the tensor with a role, 0 if there is none.
func (m *methodLayer) dim(role format.Role, at int) uint64 {
	i, ok := m.layer.Roles[role]
	if !ok || len(m.tensors[i].Shape) <= at {
		return 0
	}
	return m.tensors[i].Shape[at]
}

// describe completes a layer of a kind of version 1.2.
func (m *methodLayer) describe() error {
	l := m.layer
	l.Kind, l.Rank = m.kind, m.rank()
	m.require(methodFeature[l.Kind], l.Module)
	if hasRole(l.Roles, roleMagnitude) {
		m.require(format.FeatureDoRA, l.Module)
	}
	if hasRole(l.Roles, format.RoleInputMagnitude) {
		m.require(format.FeatureInputMagnitude, l.Module)
	}
	if err := m.setScale(); err != nil {
		return err
	}
	m.check()
	return nil
}

// rank returns the number that alpha is divided by: the rank of the thin products. It is 1 if all
// matrices are whole.
func (m *methodLayer) rank() int {
	for _, role := range []format.Role{format.RoleW1B, format.RoleW2B} {
		if r := m.dim(role, 0); r > 0 && r <= maxRank {
			return int(r)
		}
	}
	return 1
}

// setScale sets the scale. That of a Kronecker product of whole matrices is 1, whatever its alpha
// says; IA³ has none.
func (m *methodLayer) setScale() error {
	l := m.layer
	isWhole := hasRole(l.Roles, format.RoleW1) && hasRole(l.Roles, format.RoleW2)
	switch {
	case methodFeature[l.Kind] == format.FeatureScaling:
		if err := m.readAxis(); err != nil {
			return err
		}
	case !isWhole:
		return m.scale(l)
	}
	l.Scaling, l.Fixed = format.Fixed, 1
	m.scales.said = l.Module + ", whose method has the scale 1"
	return nil
}

// readAxis tells the kind of an IA³ by its on_input.
func (m *methodLayer) readAxis() error {
	i, ok := m.layer.Roles[format.RoleAxis]
	if !ok {
		return nil
	}
	axis, err := readFlag(m.values, &m.tensors[i], i)
	switch {
	case err != nil:
		return err
	case axis == 0:
		m.layer.Kind = format.OutputScaling
	case axis != 1:
		return fault.New(fault.Unsupported, "%s is %v, want 0 for outputs or 1 for inputs",
			m.tensors[i].Name, axis)
	}
	return nil
}

// readFlag returns the number that a tensor of one element holds, of any dtype.
func readFlag(src format.Source, t *format.Tensor, i int) (float64, error) {
	if t.DType != dtype.BOOL && t.DType != dtype.U8 || t.Elements() != 1 {
		return readAlpha(src, t, i)
	}
	p := make([]byte, 1)
	err := src.ReadBlobAt(p, i, 0)
	return float64(p[0]), err
}

// check makes a layer with other roles or shapes than its kind wants one that nobody applies.
func (m *methodLayer) check() {
	if format.ValidateLayer(&format.Manifest{Tensors: m.tensors}, m.layer) == nil {
		return
	}
	l := m.layer
	switch missing := m.missing(); {
	case missing != nil:
		m.require(format.FeatureMissingFactor, l.Module+": "+strings.Join(missing, ", "))
	case methodFeature[l.Kind] != "" && (hasRole(l.Roles, roleA) || hasRole(l.Roles, roleB)):
		m.require(format.FeatureTwice, l.Module+", which also has factors of LoRA")
	default:
		m.require(format.FeatureFactorShape, l.Module+": "+m.shapes())
	}
	l.Kind, l.Rank = format.Other, 1
}

// missing returns the keys that a LoHa or a LoKr lacks, nil if it has all.
func (m *methodLayer) missing() (keys []string) {
	has := func(role format.Role) bool { return hasRole(m.layer.Roles, role) }
	want := func(roles ...format.Role) {
		for _, role := range roles {
			if !has(role) {
				keys = append(keys, lyCORISTail(m.layer.Kind, role))
			}
		}
	}
	switch m.layer.Kind {
	case format.Hadamard:
		want(format.RoleW1A, format.RoleW1B, format.RoleW2A, format.RoleW2B)
		if has(format.RoleT1) != has(format.RoleT2) {
			want(format.RoleT1, format.RoleT2)
		}
	case format.Kronecker:
		for _, way := range [][3]format.Role{
			{format.RoleW1, format.RoleW1A, format.RoleW1B}, {format.RoleW2, format.RoleW2A, format.RoleW2B},
		} {
			switch {
			case has(way[0]):
			case has(way[1]) || has(way[2]):
				want(way[1], way[2])
			default:
				want(way[0])
			}
		}
	case format.InputScaling, format.OutputScaling:
		want(format.RoleVector, format.RoleAxis)
	}
	return keys
}

// lyCORISTail returns the ending of a key for a role in a kind.
func lyCORISTail(kind format.Kind, role format.Role) string {
	for _, t := range lyCORISTails {
		if t.role == role && (t.kind == kind || kind == format.OutputScaling && t.kind == format.InputScaling) {
			return t.tail
		}
	}
	return "weight" // of IA³
}

// shapes lists the tensors of the layer with their shapes.
func (m *methodLayer) shapes() string {
	var all []string
	for _, role := range slices.Sorted(maps.Keys(m.layer.Roles)) {
		t := &m.tensors[m.layer.Roles[role]]
		if role != format.RoleAlpha && role != format.RoleAxis {
			all = append(all, fmt.Sprintf("%s %d", strings.TrimPrefix(t.Name, m.layer.Module+"."), t.Shape))
		}
	}
	return strings.Join(all, ", ")
}

// differenceModules returns the modules of all differences, each once.
func differenceModules(a *format.Adapter) []string {
	var modules []string
	for _, b := range a.Beside {
		if b.Action == format.Difference {
			modules = append(modules, naming.Module(b.Target))
		}
	}
	slices.Sort(modules)
	return slices.Compact(modules)
}

// renameDifferences gives the targets of differences, and the requirements that name them, the
// names of their modules in the model.
func renameDifferences(a *format.Adapter, name func(module string) string) {
	renamed := make(map[string]string)
	for i := range a.Beside {
		if b := &a.Beside[i]; b.Action == format.Difference {
			module := naming.Module(b.Target)
			to := name(module) + strings.TrimPrefix(b.Target, module)
			renamed[b.Target], b.Target = to, to
		}
	}
	for i := range a.Requires {
		if r := &a.Requires[i]; r.Feature == format.FeatureDifference {
			r.Where = renamed[r.Where]
		}
	}
}
