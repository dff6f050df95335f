package format

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
)

// Data is the content of a tensor that a Builder is given. Its source is read when the
// source is read, and must not change until then.
type Data struct {
	tensor Tensor
	n      int64 // bytes, −1 where only the shape says how many
	read   func(p []byte, off int64) error
}

// Float32s is a tensor of F32. Without a shape it has the one that its place in the layer gives it.
func Float32s(values []float32, shape ...uint64) Data {
	return Bytes(dtype.F32, encodeFloats(values, func(p []byte, x float32) []byte {
		return binary.LittleEndian.AppendUint32(p, math.Float32bits(x))
	}), shape...)
}

// Float64s is a tensor of F64; see Float32s.
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

// Bytes is a tensor of any dtype, little-endian and row-major; see Float32s. It does not copy p.
func Bytes(t dtype.Type, p []byte, shape ...uint64) Data {
	return Data{tensor: Tensor{DType: t, Shape: shape}, n: int64(len(p)), read: func(dst []byte, off int64) error {
		copy(dst, p[off:])
		return nil
	}}
}

// At is a tensor that lies in r, little-endian and row-major, from off on. Several goroutines may
// read from r at once.
func At(t dtype.Type, r io.ReaderAt, off int64, shape ...uint64) Data {
	return Read(Tensor{DType: t, Shape: shape}, func(p []byte, from int64) error {
		_, err := io.ReadFull(io.NewSectionReader(r, off+from, int64(len(p))), p)
		return err
	})
}

// Read is a tensor whose bytes a function knows: it fills p from off on, as Source.ReadBlobAt does,
// and several goroutines may call it at once.
func Read(t Tensor, read func(p []byte, off int64) error) Data { return Data{t, -1, read} }

// Named gives a tensor the name that the dialect has for it. Without one it has that of PEFT,
// without its prefix.
func (d Data) Named(name string) Data {
	d.tensor.Name = name
	return d
}

// Builder makes a Source of one adapter from factors that a program has, or can read. Its methods
// keep the first mistake, which Source returns. The zero value is not ready; NewBuilder makes one.
type Builder struct {
	manifest    Manifest
	adapter     Adapter
	reads       []func(p []byte, off int64) error
	attachments [][]byte
	err         error
}

// NewBuilder begins an adapter. The word for its dialect goes into Adapter.Dialect.
func NewBuilder(dialect string) *Builder {
	return &Builder{adapter: Adapter{Method: MethodLoRA, Dialect: dialect}}
}

// Adapter is the adapter under way, for fields without a method here: Name, Base, Orientation, and
// requirements. The builder adds layers and the tensors beside them.
func (b *Builder) Adapter() *Adapter { return &b.adapter }

// Manifest is the manifest under way, for metadata, provenance and notes.
func (b *Builder) Manifest() *Manifest { return &b.manifest }

// LayerBuilder adds the optional parts of a layer.
type LayerBuilder struct {
	builder *Builder
	index   int
	outputs uint64 // m
}

// Linear adds the update s·B·A of a linear layer: A is r×n, B m×r, both row-major.
func (b *Builder) Linear(module string, rank int, scale float64, a, bb Data) *LayerBuilder {
	return b.layer(module, Linear, rank, scale, a.factor(rank, true).or(module+".lora_A.weight"), bb.factor(rank, false).or(module+".lora_B.weight"))
}

// Embedding adds the update s·(B·A)ᵀ of an embedding: A is r×n with n the size of the vocabulary, B
// m×r.
func (b *Builder) Embedding(module string, rank int, scale float64, a, bb Data) *LayerBuilder {
	return b.layer(module, Embedding, rank, scale, a.factor(rank, true).or(module+".lora_embedding_A"), bb.factor(rank, false).or(module+".lora_embedding_B"))
}

// Conv adds the update of a convolution. A has the shape r×n×(kernel), B m×r×1×…; both must be
// given with it.
func (b *Builder) Conv(module string, rank int, scale float64, a, bb Data) *LayerBuilder {
	b.Require(FeatureConvolution, module)
	return b.layer(module, Conv, rank, scale, a.or(module+".lora_A.weight"), bb.or(module+".lora_B.weight"))
}

func (b *Builder) layer(module string, kind Kind, rank int, scale float64, a, bb Data) *LayerBuilder {
	if rank < 1 && b.err == nil {
		b.err = about(broken(37, "rank %d, want 1 to %d", rank, MaxRank), fmt.Sprintf("layer %q", module))
	}
	l := &LayerBuilder{builder: b, index: len(b.adapter.Layers)}
	if len(bb.tensor.Shape) > 0 {
		l.outputs = bb.tensor.Shape[0]
	}
	b.adapter.Layers = append(b.adapter.Layers, Layer{
		Module: module, Kind: kind, Rank: rank, Scaling: Fixed, Fixed: scale, Roles: map[Role]int{RoleA: b.add(a), RoleB: b.add(bb)},
	})
	return l
}

// Alpha replaces the scale by lora_alpha and the rule that makes the scale of it.
func (l *LayerBuilder) Alpha(alpha float64, rule Scaling) *LayerBuilder {
	layer := &l.builder.adapter.Layers[l.index]
	layer.Alpha, layer.Scaling, layer.Fixed = alpha, rule, 0
	return l
}

// Magnitude makes the layer one of DoRA, with m magnitudes.
func (l *LayerBuilder) Magnitude(m Data) *LayerBuilder {
	l.builder.adapter.Method = MethodDoRA
	return l.role(RoleMagnitude, FeatureDoRA, ".lora_magnitude_vector", m)
}

// Bias adds the bias of B: the module's bias receives s times it. It has m elements.
func (l *LayerBuilder) Bias(bias Data) *LayerBuilder {
	return l.role(RoleBias, FeatureLoRABias, ".lora_B.bias", bias)
}

func (l *LayerBuilder) role(role Role, feature Feature, tail string, d Data) *LayerBuilder {
	layer := &l.builder.adapter.Layers[l.index]
	l.builder.Require(feature, layer.Module)
	layer.Roles[role] = l.builder.add(d.shaped(l.outputs).or(layer.Module + tail))
	return l
}

// Replace adds a tensor that takes the place of the base's tensor target. It must be given with its
// shape.
func (b *Builder) Replace(target string, d Data) {
	b.adapter.Beside = append(b.adapter.Beside, Beside{Action: Replace, Target: target, Tensor: b.add(d.or(target))})
}

// Rows adds a tensor whose rows take the place of the given rows of the base's tensor target.
// Without a shape it has two dimensions.
func (b *Builder) Rows(target string, rows []int64, d Data) {
	if n := d.elements(); len(d.tensor.Shape) == 0 && len(rows) > 0 && n%int64(len(rows)) == 0 {
		d = d.shaped(uint64(len(rows)), uint64(n)/uint64(len(rows)))
	}
	b.adapter.Beside = append(b.adapter.Beside, Beside{Action: Rows, Target: target, Tensor: b.add(d.or(target + ".rows")), Rows: slices.Clone(rows)})
}

// Opaque adds a tensor that nobody here interprets, under its name, and the requirement that says
// why: who does not know the feature refuses the adapter.
func (b *Builder) Opaque(name string, d Data, feature Feature, where string) {
	b.Require(feature, where)
	b.adapter.Beside = append(b.adapter.Beside, Beside{Action: Opaque, Target: name, Tensor: b.add(d.Named(name))})
}

// Require adds a feature that whoever applies the adapter must know; see Requirement.
func (b *Builder) Require(feature Feature, where string) {
	b.adapter.Requires = append(b.adapter.Requires, Requirement{Feature: feature, Where: where})
}

// Attach adds a file that is carried verbatim.
func (b *Builder) Attach(name string, content []byte) {
	sum := sha256.Sum256(content)
	b.manifest.Attachments = append(b.manifest.Attachments, Attachment{Name: name, NBytes: int64(len(content)), SHA256: hex.EncodeToString(sum[:])})
	b.attachments = append(b.attachments, content)
}

// Source returns the adapter, in the order of spec/FORMAT.md, when it passes Validate. The builder
// must not be used after it.
func (b *Builder) Source() (Source, error) {
	if b.err != nil {
		return nil, b.err
	}
	a := &b.adapter
	slices.SortStableFunc(a.Layers, func(x, y Layer) int { return strings.Compare(x.Module, y.Module) })
	slices.SortFunc(a.Requires, compareRequirements)
	a.Requires = slices.Compact(a.Requires)
	b.manifest.Adapters = []Adapter{*a}
	if err := Validate(&b.manifest); err != nil {
		return nil, err
	}
	return &built{b}, nil
}

// add enters a tensor and returns its index.
func (b *Builder) add(d Data) int {
	i := len(b.manifest.Tensors)
	if want := d.tensor.NBytes(); d.n >= 0 && d.n != want && b.err == nil {
		b.err = Errorf(ErrCorrupt, "tensor %q, %v of shape %d, takes %d bytes and is given %d", d.tensor.Name, d.tensor.DType, d.tensor.Shape, want, d.n)
	}
	b.manifest.Tensors = append(b.manifest.Tensors, d.tensor)
	b.reads = append(b.reads, d.read)
	return i
}

// or names a tensor that has no name.
func (d Data) or(name string) Data {
	if d.tensor.Name == "" {
		d.tensor.Name = name
	}
	return d
}

// elements is how many elements the bytes are.
func (d Data) elements() int64 {
	if bits := int64(d.tensor.DType.Bits()); d.n >= 0 && bits > 0 {
		return d.n * 8 / bits
	}
	return 0
}

// shaped gives a tensor that came without a shape this one.
func (d Data) shaped(shape ...uint64) Data {
	if len(d.tensor.Shape) == 0 && d.n >= 0 {
		d.tensor.Shape = shape
	}
	return d
}

// factor shapes A (r×n) or B (m×r).
func (d Data) factor(rank int, isA bool) Data {
	if rank < 1 {
		return d // Validate refuses it
	}
	r := uint64(rank)
	other := uint64(d.elements()) / r
	if isA {
		return d.shaped(r, other)
	}
	return d.shaped(other, r)
}

// built is the source that a builder made.
type built struct{ *Builder }

func (s *built) Manifest() *Manifest { return &s.manifest }

func (s *built) ReadBlobAt(p []byte, i int, off int64) error {
	if i < len(s.reads) {
		if n := s.manifest.Tensors[i].NBytes(); off < 0 || off > n || int64(len(p)) > n-off {
			return fmt.Errorf("read of %d bytes at %d of tensor %q, which has %d", len(p), off, s.manifest.Tensors[i].Name, n)
		}
		return s.reads[i](p, off)
	}
	copy(p, s.attachments[i-len(s.reads)][off:])
	return nil
}

func (s *built) Close() error { return nil }
