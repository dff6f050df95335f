// Package format describes LoRA adapters and reads and writes .lora files (spec/FORMAT.md).
//
// An adapter is a set of layers. Each layer belongs to one module of a base model and holds two
// thin factors, A (r×n) and B (m×r), and a scale s. Applying it adds s·B·A to the module's weight
// (Hu et al., arXiv:2106.09685). A [Manifest] lists the layers, every tensor the adapter carries
// beside them, and every feature that gives a tensor another meaning.
//
// A [Source] is an adapter that can be read, a [Sink] a place to write one, and [Copy] joins the
// two. Package convert reads and writes the dialects of other programs; [NewBuilder] makes a source
// from factors in memory.
//
// A .lora file is both source and sink. [Open] and [NewReader] read it by position and
// [NewStreamReader] from a pipe. [Write] and [NewWriter] write it in one pass. [Verify] checks
// every byte, and [Dump] explains every byte. Errors name the rule of spec/FORMAT.md that a file
// breaks: R1, R2, ….
package format

import (
	"math"
	"slices"

	"github.com/loratool/loratool/format/dtype"
)

// Source is an adapter, or a bundle of adapters, in any storage. Several goroutines may call its
// methods at once.
type Source interface {
	// Manifest describes everything in the source. Every call returns the same value. The caller
	// must not change it.
	Manifest() *Manifest
	// ReadBlobAt fills p with the bytes of blob i from offset off. Blob i is tensor i,
	// little-endian and row-major; after the last tensor come the attachments, so attachment j is
	// blob len(Tensors)+j. The caller must not read outside the blob.
	ReadBlobAt(p []byte, i int, off int64) error
	Close() error
}

// Manifest lists the contents of a source.
type Manifest struct {
	Adapters    []Adapter
	Tensors     []Tensor
	Attachments []Attachment
	Metadata    map[string]string
	Provenance  Provenance
	Notes       []string // the reader's remarks for the user; not part of the content
}

// Tensor is one entry of the tensor table.
type Tensor struct {
	Name  string // in the spelling of the source's dialect
	DType dtype.Type
	Shape []uint64
}

// NBytes returns the size of the tensor's data in bytes.
func (t *Tensor) NBytes() int64 {
	n, _ := dtype.NElements(t.Shape)
	b, _ := t.DType.NBytes(n)
	return b
}

// Elements returns the number of elements: the product of the dimensions, 1 for a scalar.
func (t *Tensor) Elements() int64 {
	n, _ := dtype.NElements(t.Shape)
	return int64(n)
}

// Attachment is a file, or the beginning of a file, that is kept byte for byte.
type Attachment struct {
	Name   string
	NBytes int64
	// SHA256 is a digest of 64 hex digits, or "" if unknown. For source.safetensors.header it is
	// the digest of the whole source file, which the attachment helps to restore; for any other
	// attachment it is the digest of the attachment itself.
	SHA256 string
}

// Names reserved for attachments. In a file with several adapters, the adapter's name and a slash
// precede each of them.
const (
	PEFTConfig   = "adapter_config.json"       // PEFT's configuration
	ModelCard    = "README.md"                 // the model card
	SourceHeader = "source.safetensors.header" // the beginning of the safetensors file that the adapter was read from
)

// Provenance says where a file came from.
type Provenance struct {
	Source        string // the input, in words or as a file name
	Tool, Version string // the program that wrote the file
}

// Adapter is one adapter of a source: layers, the tensors beside them, and its requirements.
type Adapter struct {
	Name        string // unique within a bundle; may be "" for a single adapter
	Method      Method
	Dialect     string // the producer's way of storing adapters: "peft", …; "" if it has or says none
	Base        Base
	Orientation Orientation
	Requires    []Requirement
	Layers      []Layer
	Beside      []Beside
}

// Method is the method of an adapter: MethodLoRA, MethodDoRA, or a method from OtherMethod.
type Method string

const (
	MethodLoRA Method = "lora"
	MethodDoRA Method = "dora"
)

// OtherMethod returns the method that a producer calls word: "other:ia3" for "ia3".
func OtherMethod(word string) Method { return Method("other:" + word) }

// Tensors returns the indices in Manifest.Tensors of all tensors that belong to the adapter,
// ascending.
func (a *Adapter) Tensors() []int {
	var all []int
	for i := range a.Layers {
		for _, t := range a.Layers[i].Roles {
			all = append(all, t)
		}
	}
	for i := range a.Beside {
		all = append(all, a.Beside[i].Tensor)
	}
	slices.Sort(all)
	return all
}

// Base identifies the model an adapter was trained on. Empty fields are unknown.
type Base struct {
	Name         string
	Revision     string
	Fingerprints map[string]string // tensor of the base → SHA-256; see Fingerprint
}

// Orientation is the producer's claim about how the base stores the weights of linear layers. It is
// only a hint: configurations are often wrong about it. It counts where a weight is square, so that
// its shape cannot decide, and the base itself says nothing.
type Orientation string

const (
	OrientationUnknown Orientation = ""
	MxN                Orientation = "mxn" // m×n, as torch.nn.Linear stores it
	NxM                Orientation = "nxm" // n×m, as GPT-2's Conv1D stores it
)

// Requirement is a feature beyond W0 + s·B·A that a program must understand to apply the adapter.
// Where names the module, tensor or configuration field that needs the feature, and the value found
// there.
type Requirement struct {
	Feature Feature
	Where   string
}

// Kind is the kind of module that a layer belongs to. It decides what A and B mean.
type Kind string

const (
	// Linear: A is r×n and B is m×r. The weight receives s·B·A; it is m×n, or n×m if the base
	// stores it transposed.
	Linear Kind = "linear"
	// Embedding: A is r×n, n being the size of the vocabulary, and B is m×r. The weight is n×m and
	// receives s·(B·A)ᵀ.
	Embedding Kind = "embedding"
	// Conv: A and B also have the spatial dimensions of the convolution.
	Conv Kind = "conv"
	// Expert: A and B stack the factors of several experts. If the base's expert matrices are
	// square, neither their shape nor this kind says which dimension A reads.
	Expert Kind = "expert"
	// Version 1.1 adds kinds that work like Expert and say which dimension of a square matrix A
	// reads.
	ExpertInputs  Kind = "expert-inputs"  // the expert's inputs, however the base stores it
	ExpertOutputs Kind = "expert-outputs" // the expert's outputs
	ExpertFirst   Kind = "expert-first"   // the matrix's first dimension
	ExpertSecond  Kind = "expert-second"  // the matrix's second dimension
	// Version 1.2 adds methods of LyCORIS (spec/METHODS.md). Their factors have roles of their own.
	Hadamard      Kind = "hadamard"       // LoHa: the product of two thin products, element by element
	Kronecker     Kind = "kronecker"      // LoKr: the Kronecker product of two matrices, each whole or a thin product
	OutputScaling Kind = "output-scaling" // IA³: each row of the weight grows by its own share of itself
	InputScaling  Kind = "input-scaling"  // IA³: the same for the weights of one input
	// Other: the factors cannot be understood without a Requirement.
	Other Kind = "other"
)

// kinds lists every kind.
var kinds = []Kind{
	Linear, Embedding, Conv, Expert, ExpertInputs, ExpertOutputs, ExpertFirst, ExpertSecond,
	Hadamard, Kronecker, OutputScaling, InputScaling, Other,
}

// isMethod reports whether k is a kind that version 1.2 added.
func (k Kind) isMethod() bool { return methods[k] != nil }

// IsExpert reports whether A and B stack the factors of several experts.
func (k Kind) IsExpert() bool { return k == Expert || k.saysDimension() }

// saysDimension reports whether k is a kind that version 1.1 added.
func (k Kind) saysDimension() bool {
	return k == ExpertInputs || k == ExpertOutputs || k == ExpertFirst || k == ExpertSecond
}

// Scaling is the rule that gives a layer its scale s.
type Scaling string

const (
	AlphaOverR     Scaling = "alpha/r"       // Hu et al., arXiv:2106.09685
	AlphaOverSqrtR Scaling = "alpha/sqrt(r)" // rsLoRA, Kalajdzievski, arXiv:2312.03732
	Fixed          Scaling = "fixed"         // the producer stores s itself
)

// Role is the part that a tensor plays in its layer.
type Role string

const (
	RoleA         Role = "A"
	RoleB         Role = "B"
	RoleBias      Role = "bias"      // m values: B's bias; s times it is added to the module's bias
	RoleMagnitude Role = "magnitude" // DoRA's magnitudes m (Liu et al., arXiv:2402.09353)
	RoleAlpha     Role = "alpha"     // one element: lora_alpha as the producer stored it; the value is Layer.Alpha

	// The roles of version 1.2; spec/METHODS.md has the shapes.
	RoleCore           Role = "core"            // of a convolution by Tucker: s·Σ B[i,a]·core[a,b,k]·A[b,j]
	RoleInputMagnitude Role = "input_magnitude" // DoRA's magnitudes, one for each input
	RoleW1             Role = "w1"              // of Kronecker: the left matrix
	RoleW1A            Role = "w1_a"            // the factors of the left matrix
	RoleW1B            Role = "w1_b"
	RoleW2             Role = "w2" // of Kronecker: the right matrix
	RoleW2A            Role = "w2_a"
	RoleW2B            Role = "w2_b"
	RoleT1             Role = "t1" // the cores of the two matrices, where they are decomposed by Tucker
	RoleT2             Role = "t2"
	RoleVector         Role = "vector" // of OutputScaling and InputScaling: the share of each output or input
	RoleAxis           Role = "axis"   // of the same: one element, 1 for inputs, as the producer stored it; the kind counts
)

// Layer is the update of one module.
type Layer struct {
	Module  string // path of the module in the model, without the producer's wrappers
	Kind    Kind
	Rank    int
	Alpha   float64 // lora_alpha; unused when Scaling is Fixed
	Scaling Scaling
	Fixed   float64      // s, when Scaling is Fixed
	Roles   map[Role]int // index into Manifest.Tensors
}

// Scale returns s, in float64.
func (l *Layer) Scale() float64 {
	switch l.Scaling {
	case AlphaOverSqrtR:
		return l.Alpha / math.Sqrt(float64(l.Rank))
	case Fixed:
		return l.Fixed
	}
	return l.Alpha / float64(l.Rank)
}

// Action says how to apply a tensor that belongs to no layer.
type Action string

const (
	Replace Action = "replace" // the tensor replaces the base's tensor Target
	Rows    Action = "rows"    // the tensor's rows replace the rows Rows of Target
	Opaque  Action = "opaque"  // nobody interprets the tensor; a Requirement says why
	// Difference: the tensor is added to the base's tensor Target (version 1.2).
	Difference Action = "difference"
)

// Beside is a tensor that belongs to no layer.
type Beside struct {
	Action Action
	Target string  // a tensor of the base, in the adapter's naming; the tensor's own name for Opaque
	Tensor int     // index into Manifest.Tensors
	Rows   []int64 // for Rows: where each row of the tensor goes in Target
}
