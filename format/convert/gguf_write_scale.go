package convert

import (
	"math"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// A GGUF file has one alpha, and llama.cpp scales each layer by alpha/r. Layers of another scale
// carry the difference in their factors.

// setScales chooses the alpha of the file: the one that gives most layers their scale. If it gives
// all others theirs times a power of two, these fold the power into their factors, exactly.
// Otherwise the file has no alpha, and every layer folds its whole scale.
func (w *ggufWriter) setScales() error {
	alphas := make(map[float64]int)
	isOne := true
	for _, l := range w.layers {
		alphas[l.scale*float64(l.rank)]++
		isOne = isOne && l.scale == 1
	}
	if isOne {
		return nil
	}
	alpha := mode(alphas)
	if w.isNearly(alpha) {
		w.alpha = float32(alpha)
		for _, l := range w.layers {
			if float64(w.alpha)/float64(l.rank) != l.scale {
				w.remark("alpha is rounded to float32, %v, which changes the scale of a layer by less than 1 part in %d", w.alpha, 1<<24)
			}
		}
		return nil
	}
	if w.foldPowers(alpha) {
		w.alpha = float32(alpha)
		return nil
	}
	for _, l := range w.layers {
		if err := w.fold(l, l.scale); err != nil {
			return err
		}
	}
	return nil
}

// isNearly reports whether one alpha gives all layers their scale, as far as float32 holds it.
func (w *ggufWriter) isNearly(alpha float64) bool {
	if alpha == 0 || float32(alpha) == 0 || math.IsInf(float64(float32(alpha)), 0) {
		return false
	}
	for _, l := range w.layers {
		if got := alpha / float64(l.rank); math.Abs(got-l.scale) > 1e-15*math.Abs(l.scale) {
			return false
		}
	}
	return true
}

// foldPowers folds powers of two into the layers that the alpha does not serve. It changes nothing
// if other factors are needed, or if a product is not exact.
func (w *ggufWriter) foldPowers(alpha float64) bool {
	if alpha == 0 || float64(float32(alpha)) != alpha {
		return false
	}
	folded := make(map[*ggufLayer]map[format.Role]*factor)
	for _, l := range w.layers {
		if folded[l] = foldsExactly(w.ctx, w.src, &l.newLayer, alpha/float64(l.rank), l.scale); folded[l] == nil {
			return false
		}
	}
	for l, factors := range folded {
		l.factors = factors
	}
	return true
}

// fold multiplies the factors of a layer by its scale. Only F32 can hold most products exactly; a
// narrower dtype rounds them.
func (w *ggufWriter) fold(l *ggufLayer, scale float64) error {
	if w.dtype != dtype.F32 {
		down, up := balance(scale)
		l.factors[roleA], l.factors[roleB] = l.factors[roleA].times(down).rounded(), l.factors[roleB].times(up).rounded()
		w.remark("the factors are rounded to %v", w.dtype)
		return nil
	}
	remark, err := foldRatio(w.ctx, w.src, &l.newLayer, scale)
	if remark != "" {
		w.remark("%s", remark)
	}
	return err
}
