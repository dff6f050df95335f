package pickle

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// The globals that tensors are built from.
const (
	orderedDict           = global("collections.OrderedDict")
	rebuildTensor         = global("torch._utils._rebuild_tensor") // up to torch 0.3
	rebuildTensorV2       = global("torch._utils._rebuild_tensor_v2")
	rebuildTensorV3       = global("torch._utils._rebuild_tensor_v3") // for dtypes without a storage class
	rebuildParameter      = global("torch._utils._rebuild_parameter")
	rebuildParameterState = global("torch._utils._rebuild_parameter_with_state")
	torchSize             = global("torch.Size")
	untypedStorage        = global("torch.storage.UntypedStorage")
)

// maxDims bounds the dimensions of a tensor, as in torch.
const maxDims = 64

var functions = []global{orderedDict, rebuildTensor, rebuildTensorV2, rebuildTensorV3, rebuildParameter, rebuildParameterState, torchSize, untypedStorage}

// storageTypes maps torch's storage classes to dtypes. Invalid stands for a dtype that safetensors
// does not have.
var storageTypes = map[global]dtype.Type{
	"torch.DoubleStorage":        dtype.F64,
	"torch.FloatStorage":         dtype.F32,
	"torch.HalfStorage":          dtype.F16,
	"torch.BFloat16Storage":      dtype.BF16,
	"torch.LongStorage":          dtype.I64,
	"torch.IntStorage":           dtype.I32,
	"torch.ShortStorage":         dtype.I16,
	"torch.CharStorage":          dtype.I8,
	"torch.ByteStorage":          dtype.U8,
	"torch.BoolStorage":          dtype.BOOL,
	"torch.ComplexFloatStorage":  dtype.C64,
	"torch.ComplexDoubleStorage": dtype.Invalid,
	"torch.QInt8Storage":         dtype.Invalid,
	"torch.QInt32Storage":        dtype.Invalid,
	"torch.QUInt8Storage":        dtype.Invalid,
	"torch.QUInt4x2Storage":      dtype.Invalid,
	"torch.QUInt2x4Storage":      dtype.Invalid,
}

// dtypes maps the torch.dtype objects in the arguments of _rebuild_tensor_v3 to dtypes.
var dtypes = map[global]dtype.Type{
	"torch.uint16": dtype.U16, "torch.uint32": dtype.U32, "torch.uint64": dtype.U64,
	"torch.float8_e4m3fn": dtype.F8E4M3, "torch.float8_e5m2": dtype.F8E5M2, "torch.float8_e8m0fnu": dtype.F8E8M0,
	"torch.float8_e4m3fnuz": dtype.F8E4M3FNUZ, "torch.float8_e5m2fnuz": dtype.F8E5M2FNUZ,
}

// global pushes a name if tensors are built from it, and fails otherwise.
func (m *machine) global() error {
	at := m.at - 1
	module, err := m.line()
	if err != nil {
		return err
	}
	name, err := m.line()
	if err != nil {
		return err
	}
	g := global(module + "." + name)
	_, isStorage := storageTypes[g]
	_, isDType := dtypes[g]
	if !isStorage && !isDType && !slices.Contains(functions, g) && !isOfDTensors(g) {
		return fault.New(fault.Unsupported, "the pickle names %q, which no tensor needs; nothing in it was run", string(g)).At(at).WithHint("%s", hintFor(g))
	}
	return m.push(g)
}

// hintFor distinguishes unusual names from names that have no place in a file of weights.
func hintFor(g global) string {
	for _, harmless := range []string{"torch.", "numpy.", "collections.", "argparse.", "transformers.", "peft.", "_codecs."} {
		if strings.HasPrefix(string(g), harmless) {
			return hintResave
		}
	}
	return "loading this file in Python would run the named function; do not load it unless you trust its author"
}

// construct executes REDUCE and BUILD: it pushes the result that a known function would return,
// without calling it.
func (m *machine) construct(op byte) error {
	values, err := m.pop(2)
	if err != nil {
		return err
	}
	if op == opBuild { // BUILD sets attributes, such as _metadata of a state dict; they are not values of the dict
		_, isDict := values[0].(*dict)
		if o, ok := values[0].(*object); !isDict && (!ok || !o.build(values[1])) {
			return m.corrupt("BUILD sets attributes on %s", describe(values[0]))
		}
		return m.push(values[0])
	}
	f, isGlobal := values[0].(global)
	args, isTuple := values[1].(tuple)
	if !isGlobal || !isTuple {
		return m.corrupt("%s is called with %s", describe(values[0]), describe(values[1]))
	}
	switch {
	case f == orderedDict && len(args) == 0:
		return m.push(&dict{})
	case f == torchSize && len(args) == 1:
		return m.push(args[0])
	case (f == rebuildParameter || f == rebuildParameterState) && len(args) > 0:
		if t, ok := args[0].(*Tensor); ok {
			return m.push(t)
		}
	case f == rebuildTensor && len(args) == 4, f == rebuildTensorV2 && len(args) >= 6, f == rebuildTensorV3 && len(args) >= 7:
		t, err := m.tensor(f, args)
		if err != nil {
			return err
		}
		return m.push(t)
	}
	v, ok, err := distributed(m, f, args)
	switch {
	case err != nil:
		return err
	case ok:
		return m.push(v)
	}
	return m.corrupt("%s is called with %d arguments of the wrong number or type", f, len(args))
}

// tensor makes a tensor from the arguments (storage, storage_offset, size, stride, requires_grad,
// backward_hooks, …). V2 adds metadata, V3 dtype and metadata.
func (m *machine) tensor(f global, args tuple) (*Tensor, error) {
	s, ok := args[0].(*storage)
	offset, ok2 := args[1].(int64)
	shape, ok3 := dims(args[2])
	strides, ok4 := dims(args[3])
	if !ok || !ok2 || !ok3 || !ok4 || offset < 0 || len(shape) != len(strides) || len(shape) > maxDims {
		return nil, m.corrupt("a tensor of %s at %s with size %s and stride %s", describe(args[0]), describe(args[1]), describe(args[2]), describe(args[3]))
	}
	t := &Tensor{DType: s.dtype, Shape: make([]uint64, len(shape)), view: view{s, offset, strides}}
	for i, d := range shape {
		t.Shape[i] = uint64(d)
	}
	rest := args[min(len(args), 6):]
	if f == rebuildTensorV3 {
		d, ok := rest[0].(global)
		if _, known := dtypes[d]; !ok || !known {
			return nil, m.corrupt("a tensor has the dtype %s", describe(rest[0]))
		}
		t.DType, rest = dtypes[d], rest[1:]
	}
	if (f == rebuildTensorV3) != (s.dtype == dtype.Invalid) {
		return nil, m.corrupt("%s is called with a storage of %v", f, s.dtype)
	}
	if len(rest) > 0 && rest[0] != nil {
		if d, ok := rest[0].(*dict); !ok || len(d.entries) > 0 {
			return nil, fault.New(fault.Unsupported, "the pickle holds a tensor that is conjugated or negated on reading").At(m.at).WithHint(hintPlainCopy)
		}
	}
	return t, m.checkView(t)
}

// checkView checks that a view lies within the size claimed for its storage. File.prove checks the
// claim.
func (m *machine) checkView(t *Tensor) error {
	n, ok := dtype.NElements(t.Shape)
	if _, fits := t.DType.NBytes(n); !ok || !fits {
		return m.corrupt("a tensor of %v and shape %d is larger than any file", t.DType, t.Shape)
	}
	end, ok := t.end(t.Shape)
	if have := t.storage.n * t.storage.elementBytes() / int64(t.DType.Size()); !ok || end > have {
		return m.corrupt("a tensor of shape %d, strides %d and offset %d leaves its storage of %d elements", t.Shape, t.strides, t.offset, have)
	}
	return nil
}

// dims returns the integers of a tuple or list, if none is negative.
func dims(v any) ([]int64, bool) {
	items, ok := v.(tuple)
	if l, isList := v.(*list); isList {
		items, ok = l.items, true
	}
	all := make([]int64, len(items))
	for i, item := range items {
		d, isInt := item.(int64)
		if !isInt || d < 0 {
			return nil, false
		}
		all[i] = d
	}
	return all, ok
}

// storage resolves a persistent id: ("storage", class, key, location, elements). The older
// container has one more item for views of storages, which torch has not written since 0.4.
func (f *File) storage(m *machine, id tuple) (*storage, error) {
	if len(id) < 5 || id[0] != "storage" {
		return nil, m.corrupt("a persistent id is %s, want a tuple that names a storage", describe(id))
	}
	class, ok := id[1].(global)
	key, ok2 := id[2].(string)
	n, ok3 := id[4].(int64)
	d, known := storageTypes[class]
	if !ok || !ok2 || !ok3 || n < 0 || !known && class != untypedStorage {
		return nil, m.corrupt("a storage has class %s, key %s and length %s", describe(id[1]), describe(id[2]), describe(id[4]))
	}
	if known && d == dtype.Invalid {
		return nil, fault.New(fault.Unsupported, "the pickle holds a tensor in a %s, whose dtype safetensors does not have", string(class)).At(m.at).WithHint(hintPlainCopy)
	}
	if len(id) > 5 && id[5] != nil {
		return nil, fault.New(fault.Unsupported, "the pickle holds a storage that is a view of another storage").At(m.at).WithHint("%s", hintResave)
	}
	if s := f.byKey[key]; s != nil {
		if s.dtype != d || s.n != n {
			return nil, m.corrupt("storage %q has %d elements of %v in one place and %d of %v in another", key, s.n, s.dtype, n, d)
		}
		return s, nil
	}
	s := &storage{key: key, dtype: d, n: n}
	if _, ok := d.NBytes(uint64(n)); known && !ok {
		return nil, m.corrupt("storage %q claims %d elements, more than any file can hold", key, n)
	}
	f.byKey[key] = s
	f.storages = append(f.storages, s)
	return s, nil
}
