package checkpoint

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/ggml"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/quant"
)

// blocks shows the tensors that GGUF files store in blocks of ggml as their values: in F64, which
// holds them exactly.
func blocks(_ context.Context, c *Checkpoint) (*Checkpoint, error) {
	if !inGGUF(c.Files[0]) {
		return c, nil
	}
	q := &quantisation{stored: c, hasUnits: true}
	for _, name := range c.Names() {
		if t := c.refs.tensor(name); t.Scheme != "" {
			q.addBlocks(t)
		}
	}
	if len(q.weights)+len(q.refused) == 0 {
		return c, nil
	}
	return q.view()
}

// addBlocks adds the weight that a tensor of blocks holds.
func (q *quantisation) addBlocks(t *Tensor) {
	of, _ := gguf.TypeNamed(t.Scheme)
	elements, size := of.Block()
	w := quant.Weight{Name: t.Name, Shape: slices.Clone(t.Shape), DType: dtype.F16, Scheme: t.Scheme, Parts: []string{t.Name}}
	n := len(w.Shape) - 1
	w.Shape[n] = w.Shape[n] / uint64(size) * uint64(elements)
	scaleEach, err := int64(0), error(nil)
	if of == ggml.MXFP4 || of == ggml.NVFP4 { // their scales have the exponents of F32
		w.DType = dtype.BF16
	}
	if of == ggml.NVFP4 {
		scaleEach, err = q.addScales(&w)
	}
	if !of.CanDecode() {
		err = fault.New(fault.Unsupported, "the tensor %q is stored as %v, a type of ggml that is not decoded here", t.Name, of)
	}
	if err != nil {
		q.refused = append(q.refused, quant.Refusal{Name: t.Name, Scheme: t.Scheme, Parts: w.Parts, Err: err})
		return
	}
	w.Codec = quant.GGML(of, scaleEach)
	q.weights = append(q.weights, w)
}

// addScales adds the scales beside a weight in NVFP4 to its parts: one number for the tensor, or
// for each expert. It returns the number of elements for each, 0 without scales.
func (q *quantisation) addScales(w *quant.Weight) (each int64, err error) {
	module := strings.TrimSuffix(w.Name, ".weight")
	if beside := q.stored.refs.tensor(module + ".input_scale"); beside != nil {
		w.Beside = append(w.Beside, beside.Name)
	}
	scale := q.stored.refs.tensor(module + ".scale")
	if scale == nil {
		return 0, nil
	}
	all, _ := dtype.NElements(w.Shape)
	n := scale.Elements()
	isWhole := n == 1 || len(w.Shape) == 3 && n > 0 && uint64(n) == w.Shape[0]
	if scale.DType != dtype.F32 || !isWhole {
		return 0, fault.New(fault.Mismatch, "the scale %q is %v of shape %d, want one number in F32 for the tensor, or for each expert of it",
			scale.Name, scale.DType, scale.Shape)
	}
	w.Parts = append(w.Parts, scale.Name)
	return int64(all) / n, nil
}

// ones is an endless source of ones in F32, in place of scales.
type ones struct{}

func (ones) ReadAt(_ context.Context, p []byte, off int64) error {
	var one [4]byte
	binary.LittleEndian.PutUint32(one[:], math.Float32bits(1))
	for i := range p {
		p[i] = one[(off+int64(i))%4]
	}
	return nil
}
