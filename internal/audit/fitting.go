package audit

import (
	"math"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/merge"
)

// fitting solves M − W ≈ Σ ω_k·U_k by least squares, for the updates U_k of the adapters.
type fitting struct {
	gram   []float64 // k×k: ⟨U_i, U_j⟩
	right  []float64 // ⟨M − W, U_i⟩
	change float64   // ‖M − W‖²
	noise  float64   // of one rounding
	n      int64

	weights  []float64
	errors   []float64 // standard errors
	residual float64   // ‖M − W − Σ ω·U‖²
}

func newFitting(k int) *fitting {
	return &fitting{gram: make([]float64, k*k), right: make([]float64, k)}
}

func (f *fitting) add(b *block, n int) {
	k := len(b.updates)
	for i := range n {
		w, m := b.w[i], b.m[i]
		if w-w != 0 || m-m != 0 {
			continue
		}
		d := m - w
		f.change += d * d
		x := ulp(b.e.merged.DType, m)
		f.noise += x * x / 12
		f.n++
		for p := range k {
			u := b.u[asStored][p][i]
			if u == 0 {
				continue
			}
			f.right[p] += d * u
			for q := range p + 1 {
				f.gram[p*k+q] += u * b.u[asStored][q][i]
			}
		}
	}
}

// join adds the sums of another tensor.
func (f *fitting) join(g *fitting) {
	for i, x := range g.gram {
		f.gram[i] += x
	}
	for i, x := range g.right {
		f.right[i] += x
	}
	f.change, f.noise, f.n = f.change+g.change, f.noise+g.noise, f.n+g.n
}

// solve computes the weights. That of an update which is zero, or which the others make up, is NaN.
// The standard errors come from the residual, or from the noise of rounding if that is larger.
func (f *fitting) solve() {
	k := len(f.right)
	f.weights, f.errors = make([]float64, k), make([]float64, k)
	inverse := invert(f.gram, k)
	f.residual = f.change
	for p := range k {
		f.weights[p], f.errors[p] = math.NaN(), math.NaN()
		if inverse[p*k+p] <= 0 || math.IsNaN(inverse[p*k+p]) {
			continue
		}
		f.weights[p] = 0
		for q := range k {
			if x := inverse[p*k+q]; x == x {
				f.weights[p] += x * f.right[q]
			}
		}
		f.residual -= f.weights[p] * f.right[p]
	}
	f.residual = max(f.residual, 0)
	variance := max(f.residual, f.noise) / max(1, float64(f.n-int64(k)))
	for p := range k {
		f.errors[p] = math.Sqrt(variance * inverse[p*k+p])
	}
}

// bracket replaces the weight of a single update by that of its brackets, if these are where the
// change comes from. float64 is too coarse for brackets of its own values.
func (f *fitting) bracket(g *bracketing, d dtype.Type) {
	if d == dtype.F64 || len(f.weights) != 1 {
		return
	}
	if c, err, share := g.weight(); share > 0.7 {
		f.weights[0], f.errors[0] = c, err
	}
}

// invert inverts a symmetric positive semidefinite k×k matrix of which the lower triangle is given,
// by elimination. Rows of dependent or zero columns become NaN.
func invert(lower []float64, k int) []float64 {
	a, inv := make([]float64, k*k), make([]float64, k*k)
	for i := range k {
		inv[i*k+i] = 1
		for j := range k {
			a[i*k+j] = lower[max(i, j)*k+min(i, j)]
		}
	}
	isOut := make([]bool, k)
	for p := range k {
		if a[p*k+p] <= 1e-9*lower[p*k+p] {
			isOut[p] = true
			continue
		}
		by := 1 / a[p*k+p]
		for j := range k {
			a[p*k+j] *= by
			inv[p*k+j] *= by
		}
		for i := range k {
			if i == p || isOut[i] {
				continue
			}
			x := a[i*k+p]
			for j := range k {
				a[i*k+j] -= x * a[p*k+j]
				inv[i*k+j] -= x * inv[p*k+j]
			}
		}
	}
	for p := range k {
		for j := range k {
			if isOut[p] || isOut[j] {
				inv[p*k+j] = math.NaN()
			}
		}
	}
	return inv
}

// isNoise reports whether a residual is no more than rounding makes: some roundings to the dtype.
func (f *fitting) isNoise() bool { return f.residual <= 4*f.noise+1e-12*f.change }

// isNear reports whether a fitted weight can be x: within 5 standard errors and the errors of
// float64.
func isNear(w, err, x float64) bool { return math.Abs(w-x) <= 5*err+1e-6*math.Abs(x) }

// setFit records a fit.
func (t *Tensor) setFit(f *fitting) {
	t.Weights = nil
	for k := range f.weights {
		t.Weights = append(t.Weights, Weight{merge.Figure(f.weights[k]), merge.Figure(f.errors[k])})
	}
	t.Residual = 0
	if f.change > 0 {
		t.Residual = merge.Figure(math.Sqrt(f.residual / f.change))
	}
}

// hasWideError reports whether a weight is known to less than a tenth.
func hasWideError(f *fitting) bool {
	for k, err := range f.errors {
		if !math.IsNaN(f.weights[k]) && err > 0.1 {
			return true
		}
	}
	return false
}
