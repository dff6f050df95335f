package pickle

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// A DTensor is one process' part of a tensor that several processes hold, as FSDP2 and tensor
// parallelism use it. torch pickles it as a wrapper without values around the local tensor, beside
// the mesh of the processes and the placement of the tensor on each dimension of the mesh.

// The globals that a DTensor is built from, beside those of distributedClass.
const (
	rebuildFromType       = global("torch._tensor._rebuild_from_type_v2")
	rebuildWrapperClass   = global("torch._utils._rebuild_wrapper_subclass")
	layoutOfTensor        = global("torch.serialization._get_layout")
	device                = global("torch.device")
	stridedLayout         = "torch.strided"
	nWrapperArguments     = 8 // class, dtype, size, stride, offset, layout, device, requires_grad
	localTensor, specOf   = "_local_tensor", "_spec"
	placementsOf, classOf = "placements", "DTensor"
)

// plainDTypes are the torch.dtype objects that are only named in DTensors, beside those of dtypes.
var plainDTypes = map[global]dtype.Type{
	"torch.float64": dtype.F64, "torch.float32": dtype.F32, "torch.float16": dtype.F16, "torch.bfloat16": dtype.BF16,
	"torch.int64": dtype.I64, "torch.int32": dtype.I32, "torch.int16": dtype.I16, "torch.int8": dtype.I8,
	"torch.uint8": dtype.U8, "torch.bool": dtype.BOOL, "torch.complex64": dtype.C64,
}

// The classes of a DTensor and of its description, and the modules that they have been in since
// torch 2.0. Their objects are only looked at.
var (
	distributedClasses = []string{
		classOf, "DTensorSpec", "TensorMeta", "ShardOrderEntry", "DeviceMesh", "_MeshLayout", "_FlatLayout",
		"Replicate", "Shard", "_StridedShard", "Partial", "_Partial", "_MaskPartial",
	}
	distributedModules = []string{
		"torch.distributed.tensor", "torch.distributed.tensor._api", "torch.distributed.tensor._dtensor_spec",
		"torch.distributed.tensor.placement_types", "torch.distributed.device_mesh", "torch.distributed._mesh_layout",
		"torch.distributed._tensor", "torch.distributed._tensor.api", "torch.distributed._tensor._dtensor_spec",
		"torch.distributed._tensor.placement_types", "torch.distributed._tensor.device_mesh",
	}
)

// distributedClass returns the name of a class of DTensors, "" for any other global.
func distributedClass(g global) string {
	i := strings.LastIndexByte(string(g), '.')
	if i < 0 || !slices.Contains(distributedModules, string(g[:i])) || !slices.Contains(distributedClasses, string(g[i+1:])) {
		return ""
	}
	return string(g[i+1:])
}

// isOfDTensors reports whether DTensors are built from a global.
func isOfDTensors(g global) bool {
	_, isDType := plainDTypes[g]
	return isDType || slices.Contains([]global{rebuildFromType, rebuildWrapperClass, layoutOfTensor, device}, g) || distributedClass(g) != ""
}

// torch writes fewer attributes and dimensions of a mesh than these. A pickle can name one
// dictionary any number of times, so the bounds keep the work in proportion to the file.
const maxAttributes, maxMeshDims = 64, 16

// newObject executes NEWOBJ: it pushes an empty instance.
func newObject(m *machine) error {
	values, err := m.pop(2)
	if err != nil {
		return err
	}
	class, _ := values[0].(global)
	name := distributedClass(class)
	if name == "" || name == classOf {
		return refuseOpcode(m, opNewObj)
	}
	return m.push(&object{class: name})
}

// build executes BUILD on an object: it sets all attributes at once, as torch does.
func (o *object) build(state any) bool {
	if pair, ok := state.(tuple); ok && len(pair) == 2 {
		state = pair[1] // the attributes in slots; the others, such as _is_param, say nothing about values
	}
	d, ok := state.(*dict)
	if !ok || o.state != nil {
		return false
	}
	o.state = d
	return true
}

// get returns the value of an attribute, which is the last one that was set, or nil.
func (o *object) get(key string) any {
	if o.state == nil || len(o.state.entries) > maxAttributes {
		return nil
	}
	for _, e := range slices.Backward(o.state.entries) {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// distributed executes the calls that only DTensors need; ok is false for any other call.
func distributed(m *machine, f global, args tuple) (value any, ok bool, err error) {
	switch {
	case f == layoutOfTensor && len(args) == 1:
		return args[0], true, nil
	case f == device && (len(args) == 1 || len(args) == 2):
		return nil, true, nil
	case f == rebuildFromType && len(args) == 4:
		value, err = dTensor(m, args)
		return value, err == nil, err
	}
	return nil, false, nil
}

// dTensor makes a tensor from the arguments (function, class, its arguments, state), if the local
// tensor is the whole tensor, and a part otherwise.
func dTensor(m *machine, args tuple) (any, error) {
	class, _ := args[1].(global)
	wrapper, _ := args[2].(tuple)
	if args[0] != rebuildWrapperClass || distributedClass(class) != classOf || len(wrapper) != nWrapperArguments || wrapper[0] != class {
		return nil, fault.New(fault.Unsupported, "the pickle holds a tensor of the class %s, made by %s; nothing in it was run",
			describe(args[1]), describe(args[0])).At(m.at).WithHint("%s", hintResave)
	}
	state := object{}
	hasState := state.build(args[3])
	local, isTensor := state.get(localTensor).(*Tensor)
	spec, isSpec := state.get(specOf).(*object)
	d, isDType := wrapper[1].(global)
	whole, isShape := dims(wrapper[2])
	if !hasState || !isTensor || !isSpec || spec.class != "DTensorSpec" || !isDType || !isShape || len(whole) > maxDims {
		return nil, m.corrupt("a DTensor of %s at %s, with %s and the size %s", describe(state.get(localTensor)),
			describe(state.get(specOf)), describe(wrapper[1]), describe(wrapper[2]))
	}
	if known, isPlain := plainDTypes[d]; isPlain && known != local.DType || !isPlain && dtypes[d] != local.DType {
		return nil, m.corrupt("a DTensor of %s around a tensor of %v", d, local.DType)
	}
	if wrapper[5] != stridedLayout {
		return nil, fault.New(fault.Unsupported, "the pickle holds a DTensor whose layout is %s, want strided", describe(wrapper[5])).At(m.at).WithHint(hintPlainCopy)
	}
	placements, err := placementsIn(m, spec)
	if err != nil {
		return nil, err
	}
	isSum := slices.ContainsFunc(placements, func(p string) bool { return strings.Contains(p, "Partial") })
	isWhole := slices.EqualFunc(local.Shape, whole, func(have uint64, want int64) bool { return have == uint64(want) })
	if isWhole && !isSum {
		return local, nil
	}
	return &part{strings.Join(placements, ", "), local.Shape, whole}, nil
}

// placementsIn describes the placements of a DTensor, one for each dimension of the mesh.
func placementsIn(m *machine, spec *object) ([]string, error) {
	all, ok := spec.get(placementsOf).(tuple)
	if !ok || len(all) == 0 || len(all) > maxMeshDims {
		return nil, m.corrupt("the placements of a DTensor are %s, want a tuple", describe(spec.get(placementsOf)))
	}
	words := make([]string, len(all))
	for i, p := range all {
		o, ok := p.(*object)
		switch {
		case !ok || !slices.Contains([]string{"Replicate", "Shard", "_StridedShard", "Partial", "_Partial", "_MaskPartial"}, o.class):
			return nil, m.corrupt("a placement of a DTensor is %s", describe(p))
		case strings.HasSuffix(o.class, "Shard"):
			dim, ok := o.get("dim").(int64)
			if !ok {
				return nil, m.corrupt("the dimension of a %s is %s", o.class, describe(o.get("dim")))
			}
			words[i] = fmt.Sprintf("%s(%d)", o.class, dim)
		default:
			words[i] = o.class + "()"
		}
	}
	return words, nil
}

// refuse returns the error for a part under a name.
func (p *part) refuse(name string) error {
	return fault.New(fault.Unsupported, "%q is the part of a distributed tensor that one process held: a DTensor of the "+
		"shape %d with the placement %s, of which the file has %d", name, p.whole, p.placements, p.local).
		WithHint("gather it before saving: call full_tensor() on each DTensor in every process, or get the state dict with " +
			"get_model_state_dict and StateDictOptions(full_state_dict=True)")
}

// isTensor reports whether a value is a tensor or a part of one.
func isTensor(v any) bool {
	switch v.(type) {
	case *Tensor, *part:
		return true
	}
	return false
}
