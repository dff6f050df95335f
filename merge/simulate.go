package merge

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/parallel"
)

// checkBaseAs refuses values of Options.BaseAs that are not simulated.
func checkBaseAs(o *Options) error {
	switch {
	case o.BaseAs == "" && o.BaseAsSkip != nil:
		return fault.New(fault.Unsupported, "Options.BaseAsSkip is for Options.BaseAs, which is not set").WithHint("set Options.BaseAs=nf4")
	case strings.HasPrefix(o.BaseAs, "nf4-"):
		return fault.New(fault.Unsupported, "Options.BaseAs is %q: double quantisation subtracts the mean of a weight's scales (nested_offset), whose last bits differ between devices", o.BaseAs).
			WithHint("save the model as training loaded it (save_pretrained writes codes and nested_offset) and merge into that; Options.BaseAs=nf4 leaves the second quantisation out, which moves a scale by less than a hundredth of the largest")
	case o.BaseAs != "nf4":
		return fault.New(fault.Unsupported, "Options.BaseAs is %q, want nf4", o.BaseAs).WithHint("set Options.BaseAs=nf4")
	case o.wantsRecord():
		return fault.New(fault.Unsupported, "an undo record cannot bring back the weights that Options.BaseAs replaces").
			WithHint("merge without Options.Undo, and keep the base")
	}
	for _, name := range o.BaseAsSkip {
		if strings.ContainsAny(name, `*?+|()[]{}^$\ `) || name == "" {
			return fault.New(fault.Unsupported, "Options.BaseAsSkip holds %q, want names of modules or parts of them", name).
				WithHint("replace a pattern by the names that it stands for")
		}
	}
	return nil
}

// simulate shows the linear weights of the base with the values that they have in NF4.
func simulate(p *planner) error {
	switch {
	case p.removed.is():
		return fault.New(fault.Unsupported, "Options.BaseAs is for merges that take no adapter out")
	case checkpoint.IsQuantised(p.base):
		return fault.New(fault.Mismatch, "the base is quantised, and Options.BaseAs is for one of 16 or 32 bits").
			WithHint("merge without Options.BaseAs: the weights keep the values that the adapter was trained on")
	case p.base.Config.Architecture != "": // its heads, embeddings and rows are not those of transformers
		return fault.New(fault.Unsupported, "the base is a GGUF file, and Options.BaseAs is for the checkpoint for transformers, which QLoRA quantises").In(p.base.Path).
			WithHint("merge into that checkpoint, and convert the merged one with llama.cpp")
	case naming.IsConv1DModel(p.base.Config.ModelType):
		return fault.New(fault.Unsupported, "the base stores its linear weights transposed (model_type %q), which Options.BaseAs does not simulate", p.base.Config.ModelType)
	}
	warnSkip(p)
	var err error
	p.base, err = checkpoint.SimulatedNF4(p.base, p.options.BaseAsSkip)
	p.options.Dequantise = true
	return err
}

// warnSkip names entries of Options.BaseAsSkip that fit no module, unless they are output heads,
// which a base with tied ends lacks.
func warnSkip(p *planner) {
	for _, skip := range p.options.BaseAsSkip {
		fits := func(name string) bool { return strings.Contains("."+name, "."+skip+".") }
		if !naming.IsHead(skip) && !slices.ContainsFunc(p.base.Names(), fits) {
			p.warn("no module of the base is called %q, which Options.BaseAsSkip leaves as it is", skip)
		}
	}
}

// measureBaseAs compares the weights of Options.BaseAs with those of the files, which it reads once
// more. layers are those of the merge.
func measureBaseAs(ctx context.Context, p *Plan, layers []LayerReport) (*BaseAsReport, error) {
	r := &BaseAsReport{Scheme: p.options.BaseAs, Tensors: p.decoding.decoded(), Layers: []BaseAsLayer{}}
	squares := make([]simulated, len(r.Tensors))
	err := parallel.For(ctx, p.options.Workers, len(r.Tensors), func(_, i int) (err error) {
		squares[i], err = p.decoding.simulated(ctx, r.Tensors[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	var all, changed simulated
	var delta float64 // ‖ΔW‖²
	for _, s := range squares {
		all.add(&s)
	}
	for _, l := range layers {
		i, ok := slices.BinarySearch(r.Tensors, l.Tensor)
		if !ok {
			continue
		}
		s := &squares[i]
		d := float64(l.RelativeNorm) * float64(l.RelativeNorm) * s.after
		r.Layers = append(r.Layers, BaseAsLayer{l.Tensor, root(s.lost, s.before), root(s.lost, d)})
		changed.add(s)
		delta += d
	}
	r.Error, r.Share = root(all.lost, all.before), root(changed.lost, delta)
	return r, nil
}

// root returns √(a/b), 0 if a is 0.
func root(a, b float64) Figure {
	if a == 0 {
		return 0
	}
	return Figure(math.Sqrt(a / b))
}

// simulated has sums of squares of a weight of Options.BaseAs.
type simulated struct{ lost, before, after float64 } // ‖Q(W) − W‖², ‖W‖², ‖Q(W)‖²

func (s *simulated) add(x *simulated) {
	s.lost, s.before, s.after = s.lost+x.lost, s.before+x.before, s.after+x.after
}

func (d *decoding) simulated(ctx context.Context, name string) (s simulated, err error) {
	const most = 1 << 16
	exact, _ := d.exact.Lookup(name)
	stored, _ := checkpoint.Stored(d.exact).Lookup(name)
	q, w := make([]float64, most), make([]float64, most)
	for at, n := int64(0), stored.Tensor.Elements(); at < n; at += most {
		k := min(most, n-at)
		if err := exact.Tensor.ReadValues(ctx, q[:k], at); err != nil {
			return s, err
		}
		if err := stored.Tensor.ReadValues(ctx, w[:k], at); err != nil {
			return s, err
		}
		for i := range k {
			s.add(&simulated{(q[i] - w[i]) * (q[i] - w[i]), w[i] * w[i], q[i] * q[i]})
		}
	}
	return s, nil
}
