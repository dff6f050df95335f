package convert

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// setScale gives a layer the alpha by which alpha/rank is a scale, exactly.
func (n *newLayer) setScale(scale float64, rank int) error {
	n.scaling, n.rank = format.AlphaOverR, rank
	r := float64(rank)
	alpha := scale * r
	for _, a := range []float64{
		float64(float32(alpha)), alpha, math.Nextafter(alpha, math.Inf(1)), math.Nextafter(alpha, math.Inf(-1)),
	} {
		if a/r == scale {
			n.alpha = a
			return nil
		}
	}
	return fault.New(fault.Unsupported, "no alpha gives %q the scale %v at rank %d",
		n.name, scale, rank).WithHint(hintFold)
}

// scale returns s of the layer.
func (n *newLayer) scale() float64 {
	l := format.Layer{Alpha: n.alpha, Fixed: n.alpha, Rank: n.rank, Scaling: n.scaling}
	return l.Scale()
}

// hasScale reports whether the layer has a scale: differences and the scalings of IA³ have none.
func (n *newLayer) hasScale() bool {
	return n.kind != "" && methodFeature[n.kind] != format.FeatureScaling
}

// sayScale prepares the layer for a dialect in which alpha/rank is the scale.
func (n *newLayer) sayScale() error {
	isWhole := n.factors[format.RoleW1] != nil && n.factors[format.RoleW2] != nil
	if isWhole && n.scale() != 1 {
		return fault.New(fault.Unsupported, "the scale of %q is %v, and programs take that of a Kronecker "+
			"product of whole matrices for 1", n.name, n.scale()).WithHint(hintFold)
	}
	if n.scaling == format.AlphaOverR {
		return nil
	}
	return n.setScale(n.scale(), n.rank)
}

// axis returns the data of on_input for an IA³ that has no such tensor, nil for anything else.
func (n *newLayer) axis() []byte {
	if methodFeature[n.kind] != format.FeatureScaling || n.factors[format.RoleAxis] != nil {
		return nil
	}
	p := make([]byte, 4)
	if n.kind == format.InputScaling {
		dtype.Store(dtype.F32, p, 0, 1)
	}
	return p
}

// alphaTensor returns the tensor that says the layer's alpha. It has the dtype of the source's
// alpha if that holds the number, or else F32 or F64.
func (n *newLayer) alphaTensor(m *format.Manifest) (dtype.Type, []byte) {
	types := []dtype.Type{dtype.F32, dtype.F64}
	if n.alphaAt >= 0 {
		if t := m.Tensors[n.alphaAt].DType; t.IsFloat() {
			types = append([]dtype.Type{t}, types...)
		}
	}
	for _, t := range types {
		p := make([]byte, t.Size())
		if dtype.Store(t, p, 0, n.alpha); dtype.Load(t, p, 0) == n.alpha {
			return t, p
		}
	}
	return dtype.F64, binary.LittleEndian.AppendUint64(nil, math.Float64bits(n.alpha))
}
