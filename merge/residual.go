package merge

import (
	"io"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/principal"
)

// PiSSA and OLoRA start from factors that are a part P of the weight, and take that out of the base, so that the adapter belongs to
// W − P. On the original base its update is s·B·A − P. PEFT computes P in float32 and rounds W − P to the base's dtype; here P is
// computed in float64, and the sum is rounded once.

// recomputed are the features that Options.RecomputeResidual allows.
var recomputed = map[string]bool{format.FeaturePiSSA: true, format.FeatureOLoRA: true}

// residual is a term −P, whose factors are computed from the base when they are needed.
type residual struct {
	file  *checkpoint.File
	ref   checkpoint.Ref
	olora bool
}

// withoutResiduals is the adapter without the requirements that recomputing the residual meets.
func (p *Plan) withoutResiduals(a *format.Adapter) *format.Adapter {
	if !p.options.RecomputeResidual {
		return a
	}
	plain := *a
	plain.Requires = slices.DeleteFunc(slices.Clone(a.Requires), func(q format.Requirement) bool { return recomputed[q.Feature] })
	return &plain
}

// checkResiduals refuses layers of which PEFT does not take a part out, or not in a way that is known here.
func (r *resolver) checkResiduals() error {
	if !r.has(format.FeaturePiSSA) && !r.has(format.FeatureOLoRA) {
		return nil
	}
	for i := range r.adapter.Layers {
		l := &r.adapter.Layers[i]
		_, _, _, _, gathered := r.gathered(l)
		if l.Kind != format.Linear || gathered || r.has(format.FeatureMultiheadAttention) {
			return fault.New(fault.Unsupported, "%q is no plain linear layer, and what its initialisation has taken out of the base is not known", l.Module).
				WithHint("save the adapter with path_initial_model_for_weight_conversion, which makes an ordinary LoRA")
		}
	}
	return nil
}

// addResidual takes out of the base what the initialisation of a layer has taken out.
func (r *resolver) addResidual(l *format.Layer, t *target, transposed bool) error {
	pissa, olora := r.has(format.FeaturePiSSA), r.has(format.FeatureOLoRA)
	if !pissa && !olora {
		return nil
	}
	scale := r.plan.adapters[r.index].Weight
	if olora {
		scale *= l.Scale()
	}
	d := t.ref.Tensor.DType
	switch {
	case olora && transposed:
		return fault.New(fault.Unsupported, "%q is stored transposed, and OLoRA of PEFT decomposes it as it is stored, so that its factors do not fit", l.Module).
			WithHint("save the adapter with path_initial_model_for_weight_conversion, which makes an ordinary LoRA")
	case d == dtype.F64:
		return fault.New(fault.Unsupported, "%q is stored as %v, for which PEFT has no such initialisation", l.Module, d)
	}
	t.terms = append(t.terms, term{
		adapter: r.index, module: l.Module, scale: -scale, rank: l.Rank, left: one, right: one,
		residual: &residual{file: r.plan.base.Files[t.ref.File], ref: t.ref, olora: olora},
	})
	r.residuals = append(r.residuals, l.Module)
	return nil
}

func (r *resolver) noteResiduals() {
	if len(r.residuals) > 0 {
		r.plan.warn("what the initialisation has taken out of the base is computed again and taken out, in float64; PEFT does so in float32 and rounds in between: %s", fault.List(r.residuals, 3))
	}
}

// hasResidual reports whether a part of the base is taken out.
func (t *target) hasResidual() bool {
	return slices.ContainsFunc(t.terms, func(x term) bool { return x.residual != nil })
}

// checkResidual looks for changes that do not go with a residual: it is that of the base as it is.
func (t *target) checkResidual() error {
	n := 0
	for _, x := range t.terms {
		if x.residual != nil {
			n++
		}
	}
	name := t.ref.Tensor.Name
	switch {
	case n == 0:
		return nil
	case n > 1:
		return fault.New(fault.Unsupported, "two adapters have taken a part out of %q, each of the original base", name).
			WithHint("save them with path_initial_model_for_weight_conversion, which makes ordinary LoRAs")
	case len(t.undo) > 0:
		return fault.New(fault.Unsupported, "the part that is to be taken out of %q is one of what is there when the other adapter is out", name).WithHint("unmerge first, then merge")
	case t.replace != nil || t.rows != nil:
		return fault.New(fault.Unsupported, "a part is to be taken out of %q, and an adapter replaces it", name)
	}
	return nil
}

// loadResidual computes the factors of a term −P.
func loadResidual[T kernel.Float](t *target, x *term) (kernel.Term[T], error) {
	nRows, nCols := t.shape()
	w, err := x.residual.read(int(nRows * nCols))
	if err != nil {
		return kernel.Term[T]{}, err
	}
	var part principal.Part
	if x.residual.olora {
		part = principal.Leading(w, int(nRows), int(nCols), x.rank)
	} else if part, err = principal.Singular(w, int(nRows), int(nCols), x.rank); err != nil {
		return kernel.Term[T]{}, fault.New(fault.Check, "%q: %v", t.ref.Tensor.Name, err)
	}
	return kernel.Term[T]{S: x.scale, Rank: part.Rank, L: floats[T](part.Left), R: floats[T](part.Right)}, nil
}

// read reads the base's weight.
func (x *residual) read(n int) ([]float32, error) {
	tensor := x.ref.Tensor
	w := make([]float32, n)
	size := tensor.DType.Size()
	piece := make([]byte, min(pieceBytes, n*size))
	for done := 0; done < n; {
		k := min(len(piece)/size, n-done)
		if _, err := io.ReadFull(io.NewSectionReader(x.file.Data, tensor.Off+int64(done*size), int64(k*size)), piece[:k*size]); err != nil {
			return nil, fault.InFile(err, x.file.Path)
		}
		dtype.Widen(w[done:done+k], tensor.DType, piece[:k*size])
		done += k
	}
	if slices.ContainsFunc(w, func(v float32) bool { return v-v != 0 }) {
		return nil, fault.New(fault.Check, "%q of the base holds NaN or infinity, and has no principal part", tensor.Name).In(x.file.Path)
	}
	return w, nil
}

func floats[T kernel.Float](x []float64) []T {
	if same, ok := any(x).([]T); ok {
		return same
	}
	y := make([]T, len(x))
	for i, v := range x {
		y[i] = T(v)
	}
	return y
}
