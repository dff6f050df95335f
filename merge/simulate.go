package merge

import (
	"context"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/parallel"
)

// checkBaseAs refuses values of Options.BaseAs that are not simulated.
func checkBaseAs(o *Options) error {
	switch {
	case strings.HasPrefix(o.BaseAs, "nf4-"):
		return fault.New(fault.Unsupported, "Options.BaseAs is %q: the second quantisation depends on the mean of all scales, whose last bits differ between devices", o.BaseAs).
			WithHint("merge into the quantised base itself, or take nf4, which leaves the scales as they are")
	case o.BaseAs != "nf4":
		return fault.New(fault.Unsupported, "Options.BaseAs is %q, want nf4", o.BaseAs)
	case o.wantsRecord():
		return fault.New(fault.Unsupported, "an undo record cannot bring back the weights that Options.BaseAs replaces").
			WithHint("merge without Options.Undo, and keep the base")
	}
	return nil
}

// simulate shows the linear weights of the base with the values that they have in NF4.
func simulate(p *planner) error {
	switch {
	case p.removed.is():
		return fault.New(fault.Unsupported, "Options.BaseAs is for merges that take no adapter out")
	case len(checkpoint.QuantisedOf(p.base)) > 0:
		return fault.New(fault.Mismatch, "the base is quantised, and Options.BaseAs is for one of 16 or 32 bits").
			WithHint("merge without Options.BaseAs: the weights keep the values that the adapter was trained on")
	case naming.IsConv1DModel(p.base.Config.ModelType):
		return fault.New(fault.Unsupported, "the base stores its linear weights transposed (model_type %q), which Options.BaseAs does not simulate", p.base.Config.ModelType)
	}
	var names []string
	for _, name := range p.base.Names() {
		ref, _ := p.base.Lookup(name)
		if isLinear(ref.Tensor, p.base.Config.ModelType) {
			names = append(names, name)
		}
	}
	var err error
	p.base, err = checkpoint.SimulatedNF4(p.base, names)
	p.options.Dequantise = true
	return err
}

// isLinear reports whether bitsandbytes quantises a weight when transformers loads a model: that of
// torch.nn.Linear, unless it is an output head, or is tied to an embedding.
func isLinear(t *checkpoint.Tensor, modelType string) bool {
	module, ok := strings.CutSuffix(t.Name, ".weight")
	switch t.DType {
	case dtype.F16, dtype.BF16, dtype.F32:
	default:
		return false
	}
	return ok && len(t.Shape) == 2 && t.Elements() > 0 && !naming.IsEmbedding(module) && !naming.IsInputEmbedding(module) &&
		!naming.IsHead(module) && !naming.IsHeadSegment(naming.Leaf(module), modelType)
}

// measureBaseAs compares the weights of Options.BaseAs with those of the files, which it reads once
// more.
func measureBaseAs(ctx context.Context, p *Plan) (*BaseAsReport, error) {
	r := &BaseAsReport{Scheme: p.options.BaseAs, Tensors: slices.Sorted(maps.Keys(p.decoding.as))}
	squares := make([][2]float64, len(r.Tensors))
	err := parallel.For(ctx, p.options.Workers, len(r.Tensors), func(_, i int) (err error) {
		squares[i], err = p.decoding.difference(ctx, r.Tensors[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	var lost, all float64
	for _, s := range squares {
		lost, all = lost+s[0], all+s[1]
	}
	if all > 0 {
		r.Error = Figure(math.Sqrt(lost / all))
	}
	return r, nil
}

// difference returns ‖Q(W) − W‖² and ‖W‖² of a weight.
func (d *decoding) difference(ctx context.Context, name string) (squares [2]float64, err error) {
	const most = 1 << 16
	exact, _ := d.exact.Lookup(name)
	stored, _ := checkpoint.Stored(d.exact).Lookup(name)
	q, w, raw := make([]float64, most), make([]float64, most), make([]byte, 8*most)
	for at, n := int64(0), stored.Tensor.Elements(); at < n; at += most {
		k := min(most, n-at)
		for _, x := range []struct {
			t   *checkpoint.Tensor
			dst []float64
		}{{exact.Tensor, q[:k]}, {stored.Tensor, w[:k]}} {
			size := int64(x.t.DType.Size())
			if err := x.t.ReadAt(ctx, raw[:k*size], at*size); err != nil {
				return squares, err
			}
			dtype.Widen64(x.dst, x.t.DType, raw[:k*size])
		}
		for i := range k {
			squares[0] += (q[i] - w[i]) * (q[i] - w[i])
			squares[1] += w[i] * w[i]
		}
	}
	return squares, nil
}
