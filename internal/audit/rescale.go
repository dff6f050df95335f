package audit

import (
	"context"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// newRescaling reads the magnitudes and computes all norms; nil for a tensor without DoRA.
func newRescaling(ctx context.Context, b *block, trials []trial) (*rescaling, error) {
	d := b.e.change.DoRA
	if d == nil {
		return nil, nil
	}
	t := d.Tensor()
	r := &rescaling{ofColumns: d.OfColumns, width: 1, length: b.nCols, norms: make(map[normKey][]float64), magnitudes: make([]float64, t.Elements())}
	raw := make([]byte, t.NBytes())
	if err := d.Source.ReadBlobAt(raw, d.Index, 0); err != nil {
		return nil, err
	}
	dtype.Widen64(r.magnitudes, t.DType, raw)
	if r.ofColumns {
		r.width = max(1, b.nCols/len(r.magnitudes))
		r.length = int(b.nRows) * r.width
	}
	for i := range trials {
		r.norms[trials[i].norm()] = make([]float64, len(r.magnitudes))
	}
	for key := range r.norms {
		b.needs[key.kind.variant()] = true
	}
	err := b.eachRows(ctx, 1, func(n int) {
		for key, squares := range r.norms {
			u := b.u[key.kind.variant()]
			for i := range n {
				sum := 0.0
				for a := range u {
					sum += u[a][i]
				}
				v := key.value(b.w[i], sum)
				squares[r.at(int(b.first)+i/b.nCols, i%b.nCols)] += v * v
			}
		}
	})
	for _, squares := range r.norms {
		for i, x := range squares {
			squares[i] = math.Sqrt(x)
		}
	}
	return r, err
}

// at returns the number of the magnitude of an element.
func (r *rescaling) at(row, col int) int {
	if r.ofColumns {
		return col / r.width
	}
	return row
}

// norm is the norm that a way to round divides by.
func (t *trial) norm() normKey {
	return normKey{t.kind, t.work}
}

// value is an element of V, in the middle of its interval, of W and of the sum of the updates.
func (k normKey) value(w, u float64) float64 {
	if k.kind == FactorsRounded {
		return round(k.work, round(k.work, w)+round(k.work, u))
	}
	if k.kind != Exact {
		w = round(k.work, w)
	}
	return w + u
}

// rescales reports whether DoRA is merged in this way by some tool: exactly, in float32, or with
// everything rounded.
func (r Rounding) rescales() bool {
	kind, detour := r.split()
	return detour != joined && (kind == Exact || kind == Float32 || kind == FactorsFloat32 || kind == FactorsRounded)
}

// interval is candidate.interval for DoRA. bound is the error of a float32 product for the update.
func (r *rescaling) interval(t *trial, el *element) (lo, hi float64) {
	key, at := t.norm(), r.at(el.row, el.col)
	u, bound := 0.0, 0.0
	for a := range el.u {
		u, bound = u+el.u[a], bound+el.bounds[a]
	}
	v, n, m := key.value(el.w, u), r.norms[key][at], r.magnitudes[at]
	// The norm sums squares in some lanes; the division and the product round once each.
	relative := (8 + float64(r.length)/16) * unit32
	switch key.kind {
	case FactorsRounded:
		m = round(t.work, m)
		least, most := round(t.work, m/round(t.work, n*(1+relative))), round(t.work, m/round(t.work, n*(1-relative)))
		step := bound + unit32*math.Abs(v)
		below, above := round(t.work, v-step), round(t.work, v+step)
		lo = min(least*below, least*above, most*below, most*above)
		hi = max(least*below, least*above, most*below, most*above)
	case Exact:
		relative, bound = float64(r.length+8)*unit64, bound*(unit64/unit32)
		fallthrough
	default:
		x := m / n * v
		step := math.Abs(m/n)*bound + relative*math.Abs(x)
		lo, hi = x-step, x+step
	}
	return t.finish(round(t.work, lo), round(t.work, hi))
}
