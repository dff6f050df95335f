package convert

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// PEFT's target_parameters stack the factors of all experts: A is (E·r)×n, with one expert after
// the other, and B is m×(r·E), with the expert changing fastest. A GGUF file has E×r×n and E×m×r.
// Where transformers joins gate and up in one parameter, llama.cpp has two tensors: they share A.
// Some releases of PEFT let A read the outputs; the factors then change places.

// ggufStack is a layer of stacked experts.
type ggufStack struct {
	layer      *format.Layer
	module     string // the experts
	parameter  string
	nExperts   int
	n, m       uint64 // A reads n numbers, and B writes m
	readsInput bool
}

// ggufStacks writes the layers of target_parameters.
type ggufStacks struct{ *ggufWriter }

func (w ggufStacks) addAll(layers []*format.Layer) error {
	all, err := w.pairParameters(layers)
	if err != nil {
		return err
	}
	if err := w.orient(all); err != nil {
		return err
	}
	for _, s := range all {
		if err := w.addStack(s); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		w.remark("the columns of lora_B of %q are read with the expert changing fastest, as PEFT has them", all[0].module)
	}
	return nil
}

// pairParameters finds the parameter of each layer. The layers of a module nest in the order in
// which the model registers its parameters, the first one innermost.
func (w ggufStacks) pairParameters(layers []*format.Layer) (all []*ggufStack, err error) {
	var paths []string
	for _, r := range w.a.Requires {
		if r.Feature == format.FeatureExperts {
			paths = append(paths, r.Where)
		}
	}
	levels := make(map[string]int)
	for _, l := range layers {
		module, _ := naming.CutNesting(l.Module)
		levels[module]++
	}
	for _, l := range layers {
		module, depth := naming.CutNesting(l.Module)
		names := naming.ParametersOf(module, paths)
		if len(names) != levels[module] || depth >= len(names) {
			return nil, fault.New(fault.Unsupported, "the layers of %q are %d, and target_parameters names %d of its parameters",
				module, levels[module], len(names)).WithHint("keep the adapter as a .lora file")
		}
		a, b := w.m.Tensors[l.Roles[roleA]].Shape, w.m.Tensors[l.Roles[roleB]].Shape
		s := &ggufStack{layer: l, module: module, parameter: names[len(names)-1-depth], n: a[1], m: b[0]}
		s.nExperts = int(a[0]) / l.Rank
		all = append(all, s)
	}
	return all, nil
}

// orient finds which layers have an A that reads the inputs of an expert. The shapes tell, where
// the width of the model differs from the other dimension. PEFT treats all parameters of an adapter
// alike, so these decide for square ones, as for a merge (internal/resolve, stacked.orient).
func (w ggufStacks) orient(all []*ggufStack) error {
	width := w.base.HiddenSize
	if width == 0 && len(all) > 0 {
		return fault.New(fault.Unsupported, "the adapter stacks the experts of %q, and nothing says how wide the model is",
			all[0].module).WithHint("name the base, whose config.json says it (CreateOptions.BaseConfig)")
	}
	var square []*ggufStack
	sides := make(map[bool]bool)
	for _, s := range all {
		inside, outside := s.n, s.m // of an A that reads the inputs
		if s.parameter == "down_proj" {
			inside, outside = s.m, s.n
		}
		switch {
		case inside == width && outside == width:
			square = append(square, s)
			continue
		case inside != width && outside != width:
			return fault.New(fault.Mismatch, "the factors of %q are %d×%d, and the base is %d wide", s.layer.Module, s.m, s.n, width)
		}
		s.readsInput = inside == width
		sides[s.readsInput] = true
	}
	for _, s := range square {
		switch knows := s.layer.Kind != format.Expert && !naming.LoadsExpertsTransposed(w.base.ModelType); {
		case len(sides) == 1:
			s.readsInput = sides[true]
		case len(sides) == 0 && knows && !naming.HasTransposedExperts(w.base.ModelType):
			s.readsInput = s.layer.Kind == format.ExpertInputs || s.layer.Kind == format.ExpertSecond
		default:
			return fault.New(fault.Unsupported, "the experts of %q are square, %d×%d, so their shape does not tell which dimension is the input",
				s.layer.Module, s.m, s.n).WithHint("keep the adapter as a .lora file, or merge it")
		}
	}
	return nil
}

// addStack adds the tensors of a parameter: one, or two that share A.
func (w ggufStacks) addStack(s *ggufStack) error {
	parts := map[string][]string{"gate_up_proj": {"ffn_gate_exps", "ffn_up_exps"}, "down_proj": {"ffn_down_exps"}}[s.parameter]
	block, ok := w.model.ExpertsOf(s.module)
	if parts == nil || !ok {
		return fault.New(fault.Unsupported, "no tensors of the architecture %q are known for the parameter %q of %q",
			w.model.Name, s.parameter, s.module).WithHint("keep the adapter as a .lora file")
	}
	if n := int(w.base.NExperts); n != 0 && s.nExperts != n {
		return fault.New(fault.Mismatch, "the factors of %q are for %d experts, and the base has %d", s.layer.Module, s.nExperts, n)
	}
	nOut := s.m
	if !s.readsInput {
		nOut = s.n
	}
	if nOut%uint64(len(parts)) != 0 {
		return fault.New(fault.Mismatch, "%q has %d outputs, which are no %d parts", s.layer.Module, nOut, len(parts))
	}
	for i, part := range parts {
		outs := make([]int, int(nOut)/len(parts))
		for k := range outs {
			outs[k] = i*len(outs) + k
			if naming.HasInterleavedExperts(w.base.ModelType) {
				outs[k] = k*len(parts) + i
			}
		}
		w.layers = append(w.layers, w.stackedLayer(s, "blk."+block+"."+part+".weight", outs))
	}
	return nil
}

// stackedLayer returns the tensors of one part, which has the given rows of the outputs.
func (w ggufStacks) stackedLayer(s *ggufStack, name string, outs []int) *ggufLayer {
	nExperts, r, nIn := s.nExperts, s.layer.Rank, int(s.n)
	a, b := s.layer.Roles[roleA], s.layer.Roles[roleB]
	inA := func(e, k, column int) int { return (e*r+k)*int(s.n) + column }
	inB := func(e, row, k int) int { return row*r*nExperts + k*nExperts + e }
	left := func(e, i, k int) int { return inB(e, outs[i], k) }
	right := inA
	if !s.readsInput {
		nIn, a, b = int(s.m), b, a
		left = func(e, i, k int) int { return inA(e, k, outs[i]) }
		right = func(e, k, column int) int { return inB(e, column, k) }
	}
	x := w.newLayer(name, s.layer)
	x.shapes = map[format.Role][]uint64{
		roleA: {uint64(nExperts), uint64(r), uint64(nIn)}, roleB: {uint64(nExperts), uint64(len(outs)), uint64(r)},
	}
	for role, i := range map[format.Role]int{roleA: a, roleB: b} {
		f := w.factor(i)
		shape, at := x.shapes[role], map[format.Role]func(e, i, k int) int{roleA: right, roleB: left}[role]
		f.shape = shape
		f.blocks = slices.Clone(f.blocks)
		f.blocks[0].arrange = func(p []byte) []byte { return arranged(p, f.dtype.Size(), shape, at) }
		x.factors[role] = f
	}
	return x
}

// arranged returns the elements of a tensor of three dimensions, which lie anywhere in p.
func arranged(p []byte, size int, shape []uint64, at func(i, j, k int) int) []byte {
	out := make([]byte, 0, int(shape[0]*shape[1]*shape[2])*size)
	for i := range int(shape[0]) {
		for j := range int(shape[1]) {
			for k := range int(shape[2]) {
				from := at(i, j, k) * size
				out = append(out, p[from:from+size]...)
			}
		}
	}
	return out
}
