package resolve

import (
	"maps"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/config"
)

// Base is what resolving knows of a base model: names, shapes and its configuration. It holds no
// values. The zero value of Config is that of a checkpoint without a config.json.
type Base struct {
	Path       string // how errors name it
	Tensors    map[string]Tensor
	Config     config.Model
	ConfigText []byte // config.json as it is; nil where there is none to edit
}

// Tensor is a tensor of a base.
type Tensor struct {
	DType dtype.Type
	Shape []uint64
}

// Elements is the number of elements; a tensor without dimensions has one.
func (t Tensor) Elements() int64 {
	n := uint64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return int64(n)
}

// Names lists the tensors of a base, sorted.
func (b *Base) Names() []string { return slices.Sorted(maps.Keys(b.Tensors)) }

// Edit is a step in which a base gets other tensors than it has. Either field may be empty.
type Edit struct {
	Rename  map[string]string // the present name of a tensor to its new one
	Tensors []NewTensor
}

// NewTensor is a tensor that the base gets, or has otherwise afterwards.
type NewTensor struct {
	Name  string
	From  string  // the tensor that its values are those of: its own name, or another's
	Rows  uint64  // how many it has; those that From lacks are zero. 0 keeps the number
	Zeros *Tensor // a tensor of zeros in place of From
}

// apply returns the base after an edit.
func (b *Base) apply(e Edit) *Base {
	after := *b
	after.Tensors = make(map[string]Tensor, len(b.Tensors))
	for name, t := range b.Tensors {
		if renamed, ok := e.Rename[name]; ok {
			name = renamed
		}
		after.Tensors[name] = t
	}
	for _, n := range e.Tensors {
		if n.Zeros != nil {
			after.Tensors[n.Name] = *n.Zeros
			continue
		}
		t := b.Tensors[n.From]
		t.Shape = slices.Clone(t.Shape)
		if n.Rows > 0 {
			t.Shape[0] = n.Rows
		}
		after.Tensors[n.Name] = t
	}
	return &after
}
