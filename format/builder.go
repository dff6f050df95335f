package format

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// Data is the content of a tensor for a Builder. The bytes are read when the finished source is
// read and must not change before then.
type Data struct {
	tensor Tensor
	n      int64 // bytes; −1 if only the shape tells
	read   func(p []byte, off int64) error
}

// Float32s returns an F32 tensor. Without a shape it takes the shape of its place: r×n as A and m×r
// as B of a linear layer or an embedding, m as a bias or as magnitudes, and as the rows of
// [Builder.Rows] as many rows as it lists. All other tensors need a shape. The values are copied.
func Float32s(values []float32, shape ...uint64) Data {
	return Bytes(dtype.F32, encodeFloats(values, func(p []byte, x float32) []byte {
		return binary.LittleEndian.AppendUint32(p, math.Float32bits(x))
	}), shape...)
}

// Float64s returns an F64 tensor; see Float32s for the shape.
func Float64s(values []float64, shape ...uint64) Data {
	return Bytes(dtype.F64, encodeFloats(values, func(p []byte, x float64) []byte {
		return binary.LittleEndian.AppendUint64(p, math.Float64bits(x))
	}), shape...)
}

func encodeFloats[T any](values []T, store func([]byte, T) []byte) []byte {
	p := make([]byte, 0, 8*len(values))
	for _, x := range values {
		p = store(p, x)
	}
	return p
}

// Bytes returns a tensor of dtype t from little-endian, row-major bytes; see Float32s for the
// shape. It keeps p without copying it.
func Bytes(t dtype.Type, p []byte, shape ...uint64) Data {
	return Data{tensor: Tensor{DType: t, Shape: shape}, n: int64(len(p)), read: func(dst []byte, off int64) error {
		copy(dst, p[off:])
		return nil
	}}
}

// At returns a tensor that r holds from offset off, little-endian and row-major. Several goroutines
// may read from r at once.
func At(t dtype.Type, r io.ReaderAt, off int64, shape ...uint64) Data {
	return Read(Tensor{DType: t, Shape: shape}, func(p []byte, from int64) error {
		_, err := io.ReadFull(io.NewSectionReader(r, off+from, int64(len(p))), p)
		return err
	})
}

// Read returns a tensor whose bytes come from a function. The function fills p from offset off, as
// Source.ReadBlobAt does; several goroutines may call it at once.
func Read(t Tensor, read func(p []byte, off int64) error) Data { return Data{t, -1, read} }

// Named sets the tensor's name, in the spelling of the dialect. The default is PEFT's name without
// the prefix base_model.model.
func (d Data) Named(name string) Data {
	d.tensor.Name = name
	return d
}

// Builder makes a Source of one adapter from factors that a program computes or reads. Its methods
// remember the first error, and Source returns it. NewBuilder makes a Builder; the zero value does
// not work.
type Builder struct {
	manifest    Manifest
	adapter     Adapter
	reads       []func(p []byte, off int64) error
	attachments [][]byte
	err         error
}

// NewBuilder starts an adapter. Adapter.Dialect becomes dialect.
func NewBuilder(dialect string) *Builder {
	return &Builder{adapter: Adapter{Method: MethodLoRA, Dialect: dialect}}
}

// Adapter returns the adapter being built, to set the fields that have no method: Name, Base,
// Orientation, Requires. Layers and Beside belong to the builder.
func (x *Builder) Adapter() *Adapter { return &x.adapter }

// Manifest returns the manifest being built, to set metadata, provenance and notes.
func (x *Builder) Manifest() *Manifest { return &x.manifest }

// LayerBuilder adds the optional parts of one layer.
type LayerBuilder struct {
	builder *Builder
	index   int
	outputs uint64 // m
}

// Linear adds a layer that updates a linear weight by scale·B·A. The factor a is A, r×n, and b is
// B, m×r; both are row-major.
func (x *Builder) Linear(module string, rank int, scale float64, a, b Data) *LayerBuilder {
	return x.layer(module, Linear, rank, scale,
		x.factor(a.or(module+".lora_A.weight"), rank, true),
		x.factor(b.or(module+".lora_B.weight"), rank, false))
}

// Embedding adds a layer that updates an embedding by scale·(B·A)ᵀ. The factor a is A, r×n, n being
// the size of the vocabulary, and b is B, m×r.
func (x *Builder) Embedding(module string, rank int, scale float64, a, b Data) *LayerBuilder {
	return x.layer(module, Embedding, rank, scale,
		x.factor(a.or(module+".lora_embedding_A"), rank, true),
		x.factor(b.or(module+".lora_embedding_B"), rank, false))
}

// Conv adds a layer that updates a convolution. The factor a is A, r×n×(kernel), and b is B,
// m×r×1×…; both need an explicit shape.
func (x *Builder) Conv(module string, rank int, scale float64, a, b Data) *LayerBuilder {
	x.Require(FeatureConvolution, module)
	return x.layer(module, Conv, rank, scale,
		a.or(module+".lora_A.weight"), b.or(module+".lora_B.weight"))
}

// layer adds a layer with the factors A and B.
func (x *Builder) layer(module string, kind Kind, rank int, scale float64, a, b Data) *LayerBuilder {
	if rank < 1 && x.err == nil {
		x.err = about(broken(37, "rank %d, want 1 to %d", rank, MaxRank), fmt.Sprintf("layer %q", module))
	}
	l := &LayerBuilder{builder: x, index: len(x.adapter.Layers)}
	if len(b.tensor.Shape) > 0 {
		l.outputs = b.tensor.Shape[0]
	}
	roles := map[Role]int{RoleA: x.add(a), RoleB: x.add(b)}
	x.adapter.Layers = append(x.adapter.Layers, Layer{
		Module: module, Kind: kind, Rank: rank, Scaling: Fixed, Fixed: scale, Roles: roles,
	})
	return l
}

// Alpha replaces the layer's scale by lora_alpha and the rule that computes the scale from it.
func (l *LayerBuilder) Alpha(alpha float64, rule Scaling) *LayerBuilder {
	layer := &l.builder.adapter.Layers[l.index]
	layer.Alpha, layer.Scaling, layer.Fixed = alpha, rule, 0
	return l
}

// Magnitude makes the layer a DoRA layer with the m magnitudes in m.
func (l *LayerBuilder) Magnitude(m Data) *LayerBuilder {
	l.builder.adapter.Method = MethodDoRA
	return l.role(RoleMagnitude, FeatureDoRA, ".lora_magnitude_vector", m)
}

// Bias adds B's bias, of m elements. Applying the layer adds s times it to the module's bias.
func (l *LayerBuilder) Bias(bias Data) *LayerBuilder {
	return l.role(RoleBias, FeatureLoRABias, ".lora_B.bias", bias)
}

// Role adds a tensor with another role, such as RoleCore, and the feature that it needs. The tensor
// needs an explicit shape.
func (l *LayerBuilder) Role(role Role, feature Feature, d Data) *LayerBuilder {
	return l.role(role, feature, "."+string(role), d)
}

func (l *LayerBuilder) role(role Role, feature Feature, tail string, d Data) *LayerBuilder {
	layer := &l.builder.adapter.Layers[l.index]
	l.builder.Require(feature, layer.Module)
	layer.Roles[role] = l.builder.add(d.shaped(l.outputs).or(layer.Module + tail))
	return l
}

// Replace adds a tensor that replaces the base's tensor target. The tensor needs an explicit shape.
func (x *Builder) Replace(target string, d Data) {
	x.adapter.Beside = append(x.adapter.Beside, Beside{Action: Replace, Target: target, Tensor: x.add(d.or(target))})
}

// Method adds a layer of a kind of version 1.2, such as Hadamard, with a tensor for each role. The
// feature is that of the kind (spec/METHODS.md). All tensors need an explicit shape. rank is r of
// the kind's shapes, or 1 where no r occurs.
func (x *Builder) Method(
	module string, kind Kind, feature Feature, rank int, scale float64, tensors map[Role]Data,
) *LayerBuilder {
	x.Require(feature, module)
	l := &LayerBuilder{builder: x, index: len(x.adapter.Layers)}
	roles := make(map[Role]int, len(tensors))
	for _, role := range slices.Sorted(maps.Keys(tensors)) {
		roles[role] = x.add(tensors[role].or(module + "." + string(role)))
	}
	x.adapter.Layers = append(x.adapter.Layers, Layer{
		Module: module, Kind: kind, Rank: rank, Scaling: Fixed, Fixed: scale, Roles: roles,
	})
	return l
}

// Difference adds a tensor that is added to the base's tensor target. The tensor needs an explicit
// shape.
func (x *Builder) Difference(target string, d Data) {
	x.Require(FeatureDifference, target)
	i := x.add(d.or(target + ".diff"))
	x.adapter.Beside = append(x.adapter.Beside, Beside{Action: Difference, Target: target, Tensor: i})
}

// Rows adds a tensor whose rows replace the given rows of the base's tensor target. Without a shape
// the tensor has two dimensions, the first len(rows).
func (x *Builder) Rows(target string, rows []int64, d Data) {
	if n := d.elements(); len(d.tensor.Shape) == 0 && len(rows) > 0 && n%int64(len(rows)) == 0 {
		d = d.shaped(uint64(len(rows)), uint64(n)/uint64(len(rows)))
	}
	x.adapter.Beside = append(x.adapter.Beside, Beside{Action: Rows, Target: target, Tensor: x.add(d.or(target + ".rows")), Rows: slices.Clone(rows)})
}

// Opaque adds a tensor that this module cannot interpret, together with the requirement that
// explains it. A program that does not know the feature refuses the adapter.
func (x *Builder) Opaque(name string, d Data, feature Feature, where string) {
	x.Require(feature, where)
	x.adapter.Beside = append(x.adapter.Beside, Beside{Action: Opaque, Target: name, Tensor: x.add(d.Named(name))})
}

// Require adds a feature that a program must know to apply the adapter; see Requirement.
func (x *Builder) Require(feature Feature, where string) {
	x.adapter.Requires = append(x.adapter.Requires, Requirement{Feature: feature, Where: where})
}

// Attach adds a file that is kept byte for byte. It keeps content without copying it.
func (x *Builder) Attach(name string, content []byte) {
	sum := sha256.Sum256(content)
	x.manifest.Attachments = append(x.manifest.Attachments, Attachment{Name: name, NBytes: int64(len(content)), SHA256: hex.EncodeToString(sum[:])})
	x.attachments = append(x.attachments, content)
}

// Source checks the adapter with Validate and returns it, sorted as spec/FORMAT.md wants. An
// adapter without a layer and without a tensor is an error: it would change nothing. The builder
// must not be used afterwards.
func (x *Builder) Source() (Source, error) {
	if x.err != nil {
		return nil, x.err
	}
	a := &x.adapter
	if len(a.Layers)+len(a.Beside) == 0 {
		return nil, Errorf(ErrCorrupt, "the adapter has no layer and no tensor, so it would change nothing").
			WithHint("add layers with Linear, Embedding or Conv")
	}
	slices.SortStableFunc(a.Layers, func(x, y Layer) int { return strings.Compare(x.Module, y.Module) })
	slices.SortFunc(a.Requires, compareRequirements)
	a.Requires = slices.Compact(a.Requires)
	x.manifest.Adapters = []Adapter{*a}
	if err := Validate(&x.manifest); err != nil {
		return nil, err
	}
	return &built{x}, nil
}

// add appends a tensor and returns its index.
func (x *Builder) add(d Data) int {
	i := len(x.manifest.Tensors)
	if want := d.tensor.NBytes(); d.n >= 0 && d.n != want && x.err == nil {
		x.err = d.wrongCount(want)
	}
	x.manifest.Tensors = append(x.manifest.Tensors, d.tensor)
	x.reads = append(x.reads, d.read)
	return i
}

// wrongCount is the error for a tensor whose shape takes another number of bytes than it has. It
// counts in values where it can.
func (d Data) wrongCount(want int64) error {
	have, unit, t := d.n, "byte", &d.tensor
	if size := int64(t.DType.Size()); size > 0 && have%size == 0 {
		have, want, unit = have/size, want/size, "value"
	}
	return Errorf(ErrCorrupt, "tensor %q has %s, want %d for %v of shape %d",
		t.Name, fault.Count(have, unit), want, t.DType, t.Shape)
}

// or sets the name of a tensor that has none.
func (d Data) or(name string) Data {
	if d.tensor.Name == "" {
		d.tensor.Name = name
	}
	return d
}

// elements returns the number of elements that the bytes hold, 0 if unknown.
func (d Data) elements() int64 {
	if bits := int64(d.tensor.DType.Bits()); d.n >= 0 && bits > 0 {
		return d.n * 8 / bits
	}
	return 0
}

// shaped sets the shape of a tensor that has none.
func (d Data) shaped(shape ...uint64) Data {
	if len(d.tensor.Shape) == 0 && d.n >= 0 {
		d.tensor.Shape = shape
	}
	return d
}

// factor sets the shape of A (r×n) or B (m×r) if it has none.
func (x *Builder) factor(d Data, rank int, isA bool) Data {
	if rank < 1 || d.n < 0 || len(d.tensor.Shape) > 0 {
		return d // layer records the error for a rank below 1
	}
	r, n := uint64(rank), uint64(d.elements())
	if n%r != 0 && x.err == nil {
		x.err = Errorf(ErrCorrupt, "tensor %q has %s, which is no multiple of the rank %d",
			d.tensor.Name, fault.Count(int64(n), "value"), rank)
	}
	if isA {
		return d.shaped(r, n/r)
	}
	return d.shaped(n/r, r)
}

// built is the source that a Builder returns.
type built struct{ *Builder }

func (s *built) Manifest() *Manifest { return &s.manifest }

func (s *built) ReadBlobAt(p []byte, i int, off int64) error {
	if i < len(s.reads) {
		if n := s.manifest.Tensors[i].NBytes(); off < 0 || off > n || int64(len(p)) > n-off {
			return fmt.Errorf("read of %d bytes at offset %d of tensor %q, which has %d bytes", len(p), off, s.manifest.Tensors[i].Name, n)
		}
		return s.reads[i](p, off)
	}
	copy(p, s.attachments[i-len(s.reads)][off:])
	return nil
}

func (s *built) Close() error { return nil }
