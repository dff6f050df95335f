package report

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	model "github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/rectangle"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

// OnChange compares an adapter with the difference Δ of two checkpoints: whether Δ is its ΔW.
type OnChange struct {
	// Options are those of the merge that differ from zero, such as Options.Tied=fold.
	Options     []string        `json:"options,omitempty"`
	Layers      []LayerOnChange `json:"layers"`
	NotMeasured []NotMeasured   `json:"not_measured"`
	// Elsewhere lists tensors that differ between the checkpoints and that the adapter does not
	// change.
	Elsewhere []string `json:"elsewhere"`

	Change   float64 `json:"change"`   // ‖Δ‖_F over the layers
	Norm     float64 `json:"norm"`     // ‖ΔW‖_F over the layers
	Residual float64 `json:"residual"` // ‖Δ − ΔW‖_F over the layers
	Cosine   float64 `json:"cosine"`
	// Weight is the weight of the adapter that fits Δ best: ⟨Δ, ΔW⟩ ÷ ‖ΔW‖².
	Weight float64 `json:"weight"`
}

// LayerOnChange compares the ΔW of a layer with Δ, in the part of the tensor that the layer
// changes.
type LayerOnChange struct {
	Module   string  `json:"module"`
	Tensor   string  `json:"tensor"` // of the base
	Expert   *int    `json:"expert,omitempty"`
	Change   float64 `json:"change"`   // ‖Δ‖_F
	Norm     float64 `json:"norm"`     // ‖ΔW‖_F
	Residual float64 `json:"residual"` // ‖Δ − ΔW‖_F
	Cosine   float64 `json:"cosine"`
	Weight   float64 `json:"weight"` // the weight of ΔW that fits Δ best; 0 if ΔW is zero

	products products
}

// Name is the name of the layer and, of stacked experts, the number of the expert.
func (l *LayerOnChange) Name() string {
	if l.Expert == nil {
		return l.Module
	}
	return fmt.Sprintf("%s.%d", l.Module, *l.Expert)
}

// products are ⟨Δ, Δ⟩, ⟨ΔW, ΔW⟩, ⟨Δ, ΔW⟩ and ‖Δ − ΔW‖².
type products struct{ change, update, both, residual float64 }

func (p *products) add(q *products) {
	p.change, p.update, p.both, p.residual = p.change+q.change, p.update+q.update, p.both+q.both, p.residual+q.residual
}

func (p *products) figures() (change, norm, residual, cosine, weight float64) {
	if p.change > 0 && p.update > 0 {
		cosine = max(-1, min(p.both/math.Sqrt(p.change)/math.Sqrt(p.update), 1))
		weight = p.both / p.update
	}
	return math.Sqrt(p.change), math.Sqrt(p.update), math.Sqrt(p.residual), cosine, weight
}

// ChangeOptions tune CompareChange.
type ChangeOptions struct {
	Name string // of the adapter, for messages
	// Merge says how a merge reads the adapter, and what it may do. Workers is for the whole
	// comparison.
	Merge merge.Options
	Begin Begin // told of work before it begins; nil is told nothing
}

// CompareChange compares an adapter with tuned − base. It finds the tensors that the adapter
// changes as a merge into base does, and reads both checkpoints twice, some rows at a time.
func CompareChange(
	ctx context.Context, src format.Source, base, tuned *model.Checkpoint, o ChangeOptions,
) (*OnChange, error) {
	w0, w1 := (*checkpoint.Handle)(base).Checkpoint(), (*checkpoint.Handle)(tuned).Checkpoint()
	view, changes, err := changesOf(w0, one(src, o.Name), &o.Merge)
	if err != nil {
		return nil, err
	}
	difference, err := rank.CompareCheckpoints(ctx, (*model.Checkpoint)(checkpoint.NewHandle(view)), tuned, rank.CompareOptions{
		Workers: o.Merge.Workers, Progress: o.Begin.begin("comparing", view.Bytes()),
	})
	if err != nil {
		return nil, err
	}
	r := &OnChange{Options: optionsOf(&o.Merge), Layers: []LayerOnChange{}, NotMeasured: []NotMeasured{}, Elsewhere: []string{}}
	isTouched := make(map[string]bool)
	for _, c := range changes {
		isTouched[c.Name] = true
	}
	for _, t := range difference.Tensors {
		if t.Status != rank.Identical && !isTouched[t.Tensor] {
			r.Elsewhere = append(r.Elsewhere, t.Tensor)
		}
	}
	return r, r.measure(ctx, changes, view, w1, o)
}

// measure compares the layers of all changes.
func (r *OnChange) measure(
	ctx context.Context, changes []*resolve.Change, base, tuned *checkpoint.Checkpoint, o ChangeOptions,
) error {
	names, _, _ := naming.Pair(base.Names(), tuned.Names())
	theirs := make(map[string]string, len(names)) // of the tuned checkpoint, by those of the base
	for their, our := range names {
		theirs[our] = their
	}
	var thin [][]*rectangle.Rectangle
	for _, c := range changes {
		why := whyNotThin(c)
		if ref, ok := tuned.Lookup(theirs[c.Name]); why == "" && (!ok || !slices.Equal(ref.Tensor.Shape, c.Shape)) {
			why = "the second checkpoint has no tensor of this name and shape"
			if err := checkpoint.Refusal(tuned, cmp.Or(theirs[c.Name], c.Name)); err != nil {
				why = "the second checkpoint cannot be read there: " + err.Error()
			}
		}
		if why != "" {
			r.NotMeasured = append(r.NotMeasured, NotMeasured{c.Module, c.Name, why})
			continue
		}
		thin = append(thin, rectangle.Of(c))
	}
	layers := make([][]LayerOnChange, len(thin))
	done := o.Begin.begin("comparing ΔW", rectangle.Bytes(thin))
	err := parallel.For(ctx, o.Merge.Workers, len(thin), func(_, i int) error {
		read := make(map[resolve.Blob][]byte)
		for _, rect := range thin[i] {
			ref, _ := tuned.Lookup(theirs[rect.Name])
			l := LayerOnChange{Module: rect.Module, Tensor: rect.Name, Expert: rect.Expert()}
			if err := l.measure(ctx, rect, base, ref.Tensor, read); err != nil {
				return err
			}
			layers[i] = append(layers[i], l)
			done(rect.Bytes())
		}
		return nil
	})
	var all products
	for _, list := range layers {
		for _, l := range list {
			all.add(&l.products)
			l.Change, l.Norm, l.Residual, l.Cosine, l.Weight = l.products.figures()
			r.Layers = append(r.Layers, l)
		}
	}
	r.Change, r.Norm, r.Residual, r.Cosine, r.Weight = all.figures()
	slices.SortStableFunc(r.Layers, func(a, b LayerOnChange) int { return strings.Compare(a.Module, b.Module) })
	return err
}

// measure compares one layer.
func (l *LayerOnChange) measure(
	ctx context.Context, rect *rectangle.Rectangle, base *checkpoint.Checkpoint, tuned *checkpoint.Tensor,
	read map[resolve.Blob][]byte,
) error {
	if !tuned.DType.IsFloat() {
		return fault.New(fault.Unsupported, "%q is stored as %v in the second checkpoint", rect.Name, tuned.DType)
	}
	delta, err := rect.Factors(ctx, read)
	if err != nil {
		return err
	}
	var buf rectangle.Buffer
	var update []float64
	n := len(rect.Cols)
	return rect.EachRows(ctx, base, func(first, rows int, w []float64) error {
		change, err := rect.Read(ctx, tuned, first, rows, &buf)
		if err != nil {
			return err
		}
		update = append(update[:0], make([]float64, rows*n)...)
		dense.AddProductTransposed(update, delta.B[first*delta.R:(first+rows)*delta.R], delta.A, rows, n, delta.R)
		p := &l.products
		for i, u := range update {
			u = math.Ldexp(u, delta.Exponent)
			d := change[i] - w[i]
			p.change, p.update, p.both = p.change+d*d, p.update+u*u, p.both+d*u
			p.residual += (d - u) * (d - u)
		}
		return nil
	})
}
