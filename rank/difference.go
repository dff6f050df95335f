package rank

import (
	"context"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/naming"
)

// Norms and biases of image models are carried as differences, as LyCORIS does it: the adapter can
// then have any weight, and be merged into a base in another layout. A difference that float64 does
// not hold exactly is carried as the tuned tensor.

// namesModules decides whether the adapter of an image model is found in a base by its modules.
// Only then can a fused projection, whose weight has no module, be a layer. A bare parameter that
// changed has no module either: it is found by its own name, and so is everything else then.
func namesModules(ctx context.Context, e *Extraction) (bool, error) {
	if e.options.carriesNone() {
		return true, nil
	}
	for i := range e.pairs {
		p := &e.pairs[i]
		if naming.WeightModule(p.name) != "" || strings.HasSuffix(p.name, "bias") ||
			strings.HasSuffix(p.name, ".weight") {
			continue
		}
		same, err := p.equal(ctx)
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// targetOf returns the name by which a merge finds a tensor that is changed whole.
func targetOf(name string, byModule bool) string {
	if module, ok := strings.CutSuffix(name, "_bias"); ok && byModule &&
		naming.WeightModule(module+"_weight") != "" {
		return module + ".bias"
	}
	return name
}

// carryDifference carries a tensor as its difference from the base. ok is false if float64 does not
// hold it exactly.
func carryDifference(
	ctx context.Context, r *extracting, p *pair,
) (bytes int64, ok bool, err error) {
	var all []float64
	total := p.tuned.ref.Tensor.Elements()
	fitsF32 := true
	base, tuned := make([]float64, min(total, pieceElements)), make([]float64, min(total, pieceElements))
	buf := make([]byte, 8*len(base))
	for first := int64(0); first < total; first += pieceElements {
		n := min(total-first, pieceElements)
		for _, side := range []struct {
			from *located
			to   []float64
		}{{&p.base, base[:n]}, {&p.tuned, tuned[:n]}} {
			raw, err := side.from.bytes(ctx, buf, first, int(n))
			if err != nil {
				return 0, false, err
			}
			dtype.Widen64(side.to, side.from.dtype(), raw)
		}
		for i, b := range base[:n] {
			d := tuned[i] - b
			if back := d + b; back != tuned[i] || tuned[i]-d != b { // or NaN
				return 0, false, nil
			}
			fitsF32 = fitsF32 && float64(float32(d)) == d
			all = append(all, d)
		}
	}
	t := dtype.F64
	if fitsF32 {
		t = dtype.F32
	}
	data := make([]byte, len(all)*t.Size())
	for i, d := range all {
		dtype.Store(t, data, i, d)
	}
	target := targetOf(p.name, r.byModule)
	index, err := r.spool.add(target+".diff", t, p.tuned.ref.Tensor.Shape, data)
	if err != nil {
		return 0, false, err
	}
	r.adapter.Requires = append(r.adapter.Requires,
		format.Requirement{Feature: format.FeatureDifference, Where: target})
	r.adapter.Beside = append(r.adapter.Beside,
		format.Beside{Action: format.Difference, Target: target, Tensor: index})
	return int64(len(data)), true, nil
}
