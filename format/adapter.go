// Package format holds the model of an adapter that every dialect is read into and written from,
// and the .lora container (spec/FORMAT.md).
//
// An adapter is a set of layers. Each layer belongs to one module of a base model and holds two
// thin factors, A (r×n) and B (m×r), and a scale s; applied, it adds s·B·A to the module's weight
// (Hu et al., arXiv:2106.09685). Everything that an adapter carries beside such layers is listed
// explicitly, and so is every feature that gives its tensors another meaning.
//
// Whatever adapters can be read from is a [Source], whatever they can be written to is a [Sink],
// and [Copy] joins the two. The .lora container is both: [Open] and [NewReader] read it by
// position, [NewStreamReader] from a pipe, [Write] and [NewWriter] write it in one pass, [Verify]
// proves every byte, and [Dump] explains them. The container is specified in spec/FORMAT.md, whose
// rule numbers (R1, R2, …) errors carry.
package format

import (
	"math"
	"slices"

	"github.com/loratool/loratool/format/dtype"
)

// Source is an adapter, or a bundle of adapters, whatever it is stored in. Its methods may be
// called from several goroutines at once.
type Source interface {
	// Manifest describes everything in the source. It is the same value at every call and must not
	// be changed.
	Manifest() *Manifest
	// ReadBlobAt fills p with the bytes from off of blob i: of tensor i, little-endian and
	// row-major, or, counting on after the last tensor, of attachment i − len(Tensors). Reading
	// outside the blob is the caller's mistake.
	ReadBlobAt(p []byte, i int, off int64) error
	Close() error
}

// Manifest is the description of a source.
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
	Name  string // as the source's dialect spells it
	DType dtype.Type
	Shape []uint64
}

// NBytes is the size of the tensor's data.
func (t *Tensor) NBytes() int64 {
	n, _ := dtype.NElements(t.Shape)
	b, _ := t.DType.NBytes(n)
	return b
}

// Elements is the number of elements.
func (t *Tensor) Elements() int64 {
	n, _ := dtype.NElements(t.Shape)
	return int64(n)
}

// Attachment is a file, or the beginning of one, that is carried verbatim.
type Attachment struct {
	Name   string
	NBytes int64
	// SHA256 is that of the file which the attachment restores, as 64 hex digits, or empty: of the
	// source file for source.safetensors.header, of the attachment itself otherwise.
	SHA256 string
}

// The names that are reserved for attachments. In a file with several adapters each is preceded by
// the adapter's name and a slash.
const (
	PEFTConfig   = "adapter_config.json"       // PEFT's configuration
	ModelCard    = "README.md"                 // the model card
	SourceHeader = "source.safetensors.header" // the beginning of the safetensors file that the adapter was read from
)

// Provenance says how a file came about.
type Provenance struct {
	Source        string // its origin, in words or as a file name
	Tool, Version string // the program that wrote the file
}

// Adapter is one adapter of a source.
type Adapter struct {
	Name        string // within a bundle; "" where there is one
	Method      Method
	Dialect     string // whose file it was: "peft", …
	Base        Base
	Orientation Orientation
	Requires    []Requirement
	Layers      []Layer
	Beside      []Beside
}

// Method is the method of an adapter: MethodLoRA, MethodDoRA, or one that OtherMethod makes.
type Method string

const (
	MethodLoRA Method = "lora"
	MethodDoRA Method = "dora"
)

// OtherMethod is the method with a producer's word: "other:ia3".
func OtherMethod(word string) Method { return Method("other:" + word) }

// Tensors lists the tensors that belong to the adapter, by their index in Manifest.Tensors,
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

// Base says which model an adapter was made for. Empty fields are unknown.
type Base struct {
	Name         string
	Revision     string
	Fingerprints map[string]string // name of a tensor of the base → SHA-256, see spec/FORMAT.md
}

// Orientation is how, by the word of the producer, the base stores the weights of linear layers. It
// is a hint, used only where the shape of a weight cannot tell and the base says nothing:
// configurations are often wrong about it.
type Orientation string

const (
	OrientationUnknown Orientation = ""
	MxN                Orientation = "mxn" // as torch.nn.Linear does
	NxM                Orientation = "nxm" // as Conv1D of GPT-2 does
)

// Requirement is a feature beyond W0 + s·B·A that whoever applies the adapter must understand.
// Where names the module, the tensor or the field of the configuration that it comes from, and what
// was found there.
type Requirement struct {
	Feature Feature
	Where   string
}

// Kind is the kind of module that a layer belongs to. It fixes the meaning of A and B.
type Kind string

const (
	// Linear: A is r×n, B m×r; the weight, m×n (or n×m where the base stores it so), receives
	// s·B·A.
	Linear Kind = "linear"
	// Embedding: A is r×n with n the size of the vocabulary, B m×r; the weight, n×m, receives
	// s·(B·A)ᵀ.
	Embedding Kind = "embedding"
	// Conv: A and B have the spatial dimensions of a convolution.
	Conv Kind = "conv"
	// Expert: A and B stack the factors of several experts. Where the matrices of the base are
	// square, their shape does not tell which of their dimensions A reads, and this kind does not
	// say it.
	Expert Kind = "expert"
	// The kinds of version 1.1 are as Expert, and say which dimension of a square matrix A reads.
	ExpertInputs  Kind = "expert-inputs"  // the inputs of the expert, however the base stores it
	ExpertOutputs Kind = "expert-outputs" // the outputs of the expert
	ExpertFirst   Kind = "expert-first"   // the first dimension of the matrix
	ExpertSecond  Kind = "expert-second"  // the second dimension of the matrix
	// Other: a layer whose factors need a Requirement to be understood.
	Other Kind = "other"
)

// kinds are all that there are.
var kinds = []Kind{
	Linear, Embedding, Conv, Expert, ExpertInputs, ExpertOutputs, ExpertFirst, ExpertSecond, Other,
}

// IsExpert reports whether A and B stack the factors of several experts.
func (k Kind) IsExpert() bool { return k == Expert || k.saysDimension() }

// saysDimension reports whether the kind is one of those that version 1.1 adds.
func (k Kind) saysDimension() bool {
	return k == ExpertInputs || k == ExpertOutputs || k == ExpertFirst || k == ExpertSecond
}

// Scaling is the rule that gives a layer its scale s.
type Scaling string

const (
	AlphaOverR     Scaling = "alpha/r"       // Hu et al.
	AlphaOverSqrtR Scaling = "alpha/sqrt(r)" // rsLoRA, Kalajdzievski, arXiv:2312.03732
	Fixed          Scaling = "fixed"         // the producer stores s itself
)

// Role is the part that a tensor plays in its layer.
type Role string

const (
	RoleA         Role = "A"
	RoleB         Role = "B"
	RoleBias      Role = "bias"      // m: the bias of B; the module's bias receives s times it
	RoleMagnitude Role = "magnitude" // DoRA's m (Liu et al., arXiv:2402.09353)
)

// Layer is the update of one module.
type Layer struct {
	Module  string // path of the module in the model, without wrappers of the producer
	Kind    Kind
	Rank    int
	Alpha   float64 // lora_alpha; unused when Scaling is Fixed
	Scaling Scaling
	Fixed   float64      // s, when Scaling is Fixed
	Roles   map[Role]int // index into Manifest.Tensors
}

// Scale is s.
func (l *Layer) Scale() float64 {
	switch l.Scaling {
	case AlphaOverSqrtR:
		return l.Alpha / math.Sqrt(float64(l.Rank))
	case Fixed:
		return l.Fixed
	}
	return l.Alpha / float64(l.Rank)
}

// Action says how to apply a tensor outside the layers.
type Action string

const (
	Replace Action = "replace" // it takes the place of the base's tensor Target
	Rows    Action = "rows"    // its rows take the place of the given rows of Target
	Opaque  Action = "opaque"  // nobody interprets it; a Requirement says why
)

// Beside is a tensor carried beside the layers.
type Beside struct {
	Action Action
	Target string // name of a tensor of the base, in the adapter's naming; the tensor's own name for Opaque
	Tensor int    // index into Manifest.Tensors
	Rows   []int64
}
