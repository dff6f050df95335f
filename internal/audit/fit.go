package audit

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// fitting solves M − W ≈ Σ ω_k·U_k by least squares, for the updates U_k of the adapters.
type fitting struct {
	gram   []float64 // k×k: ⟨U_i, U_j⟩
	right  []float64 // ⟨M − W, U_i⟩
	change float64   // ‖M − W‖²
	noise  float64   // of one rounding
	n      int64
	// rounded is ⟨RN(W + U) − W, U⟩ for a single update. Rounding is no noise where U is smaller
	// than the step of the dtype: most elements then keep their value, and few move by a whole
	// step.
	rounded float64

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
		if k == 1 {
			u := b.u[asStored][0][i]
			f.rounded += (round(b.e.merged.DType, w+u) - w) * u
		}
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

// fit finds the weights with which the adapters explain the change of a tensor, and names what is
// wrong with them. If they do not explain it, other updates may.
func (x *examination) fit(s *values, updates []update) error {
	f := newFitting(len(updates))
	b := newBlock(x.e, updates)
	if err := b.eachRows(x.ctx, 1, func(n int) { f.add(b, n) }); err != nil {
		return err
	}
	f.solve()
	if err := x.calibrate(f, b); err != nil {
		return err
	}
	x.e.fitting = f
	x.e.found.setFit(f)
	if f.isNoise() {
		x.nameWeights(updates)
		return nil
	}
	return x.tryOthers(f, updates)
}

// calibrate corrects the weight of a single update whose rounding is no noise: it finds the weight
// c for which RN(W + c·U) − W has the product with U that M − W has. The product grows with c.
func (x *examination) calibrate(f *fitting, b *block) error {
	if len(f.weights) != 1 || math.IsNaN(f.weights[0]) || math.Abs(f.rounded/f.gram[0]-1) <= f.errors[0] {
		return nil
	}
	product := func(c float64) (sum float64, err error) {
		err = b.eachRows(x.ctx, 1, func(n int) {
			for i := range n {
				if w, u := b.w[i], b.u[asStored][0][i]; w-w == 0 {
					sum += (round(b.e.merged.DType, w+c*u) - w) * u
				}
			}
		})
		return sum / f.gram[0], err
	}
	lo, hi := -64.0, 64.0
	for range 24 {
		c := (lo + hi) / 2
		p, err := product(c)
		if err != nil {
			return err
		}
		if p < f.weights[0] {
			lo = c
		} else {
			hi = c
		}
	}
	c := (lo + hi) / 2
	const step = 1.0 / 16
	above, err := product(c + step)
	if err != nil {
		return err
	}
	below, err := product(c - step)
	if err != nil {
		return err
	}
	f.weights[0], f.errors[0] = c, f.errors[0]/max(1e-3, (above-below)/(2*step))
	return nil
}

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

// isNear reports whether a fitted weight can be x: within 5 standard errors, and what float64 adds.
func isNear(w, err, x float64) bool { return math.Abs(w-x) <= 5*err+1e-6*math.Abs(x) }

// nameWeights names a change that is a sum of the updates with some weights.
func (x *examination) nameWeights(updates []update) {
	t, f := &x.e.found, x.e.fitting
	t.Verdict = NotAsClaimed
	var lost, off []string
	for k := range updates {
		w, err := f.weights[k], f.errors[k]
		switch {
		case math.IsNaN(w) || isNear(w, err, 1):
		case isNear(w, err, 0):
			lost = append(lost, x.adapters[k].Name)
		default:
			off = append(off, x.adapters[k].Name)
		}
	}
	switch {
	case len(lost)+len(off) == 0 && hasWideError(f):
		t.Verdict, t.Finding = Inconclusive, Rounded
		t.Text = fmt.Sprintf("rounding hides the scale of the update: it is %.3g ± %.2g of what the adapter says", f.weights[0], f.errors[0])
	case len(lost)+len(off) == 0:
		t.Verdict, t.Finding = Inconclusive, Rounded
		t.Text = "the update is there with the right scale, rounded in an unknown way"
	case len(updates) == 1:
		t.Finding, t.Text = nameScale(x.e, f.weights[0], f.errors[0], &updates[0])
	case len(off) == 0:
		t.Finding, t.Text = AdapterLost, fault.List(lost, 3)+" was not applied"
	default:
		t.Finding, t.Text = Weights, "the weights are "+weightsText(f, x.adapters)
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

func weightsText(f *fitting, adapters []merge.Adapter) string {
	text := ""
	for k := range f.weights {
		if k > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%.3g for %s", f.weights[k]*adapters[k].Weight, adapters[k].Name)
	}
	return text
}

// nameScale names a factor by which the update of one adapter differs from what the adapter says.
func nameScale(e *expected, w, err float64, u *update) (Finding, string) {
	r := float64(u.rank())
	s := e.change.Terms[0].Scale
	switch {
	case isNear(w, err, -1):
		return Sign, "the update was subtracted"
	case isNear(w, err, 2):
		return Twice, "the update is there twice"
	case isNear(w, err, 0):
		return NotApplied, "the update is not there, and the tensor has other changes"
	}
	known := []struct {
		factor float64
		why    string
	}{
		{1 / math.Sqrt(r), "1/√r: rsLoRA was read as plain LoRA"},
		{math.Sqrt(r), "√r: plain LoRA was read as rsLoRA"},
		{1 / s, "1/s: lora_alpha was lost, and the scale is 1"},
		{1 / (s * r), "the scale is 1/r: lora_alpha was read as 1"},
		{r, "r: the scale is lora_alpha, without the division by r"},
		{1 / r, "1/r: the scale was divided by r once more"},
		{s, "s: the scale was applied twice"},
		{-2, "−2: the update was subtracted twice"},
	}
	text := fmt.Sprintf("the update has %.3g of the scale that the adapter says", w)
	for _, k := range known {
		if k.factor != 1 && isNear(w, err, k.factor) {
			return Scale, text + ", which is " + k.why
		}
	}
	return Scale, text
}

// solved returns the adapters with the weights that the fit has found, each the shortest decimal
// number within its error; nil if these are the claimed ones or if there is none.
func (r *Report) solved(adapters []merge.Adapter) []merge.Adapter {
	all, isNew := slices.Clone(adapters), false
	for i, x := range r.Adapters {
		w, err := float64(x.Value), float64(x.Error)
		if math.IsNaN(w) || isNear(w, err, 0) {
			return nil
		}
		all[i].Weight = shortest(w, 5*err)
		isNew = isNew || all[i].Weight != adapters[i].Weight
	}
	if !isNew {
		return nil
	}
	return all
}

// shortest returns the decimal number with the fewest digits that is within err of x.
func shortest(x, err float64) float64 {
	for digits := 1; digits < 17; digits++ {
		y, _ := strconv.ParseFloat(strconv.FormatFloat(x, 'g', digits, 64), 64)
		if math.Abs(x-y) <= err {
			return y
		}
	}
	return x
}

// fitted joins the fits of all tensors, and names the weights of the adapters.
func (a *auditor) fitted() {
	if len(a.adapters) == 0 {
		return
	}
	all := newFitting(len(a.adapters))
	for _, e := range a.expected {
		if e.fitting != nil && e.fitting.isNoise() {
			all.join(e.fitting)
		}
	}
	all.solve()
	for k, x := range a.adapters {
		w := FittedAdapter{Adapter: x.Name, Claimed: x.Weight, Weight: Weight{merge.Figure(math.NaN()), merge.Figure(math.NaN())}}
		if all.n > 0 {
			w.Weight = Weight{merge.Figure(all.weights[k] * x.Weight), merge.Figure(all.errors[k] * math.Abs(x.Weight))}
		}
		a.report.Adapters = append(a.report.Adapters, w)
	}
}
