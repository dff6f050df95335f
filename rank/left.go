package rank

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Changes that an adapter leaves out count in its error. A tensor with one shape in both
// checkpoints counts as Δ. A row, or a tensor, that only one checkpoint has counts whole, as if the
// other had zeros; so does a tensor of another width. A head that one checkpoint ties to its
// embedding counts as the difference from that embedding.

// whyUnknown follows the reason if Δ cannot be measured.
const whyUnknown = "; its share of Δ is not known"

// leave lists a tensor as skipped and to be measured. Either reference may be missing.
func (e *Extraction) leave(name, why string, base, tuned *located) {
	e.left = append(e.left, leftOut{skipped: len(e.skipped), base: base, tuned: tuned})
	e.skip(name, "%s", why)
}

// endsOf finds the ends of a checkpoint. headShape is the shape of a head that only the other
// checkpoint has, or nil; it helps to recognise the embedding.
func endsOf(c *checkpoint.Checkpoint, headShape []uint64) ends {
	m := c.Config.Ties()
	m.HeadShape = headShape
	for _, name := range c.Names() {
		ref, _ := c.Lookup(name)
		m.Shapes[naming.StripWrappers(name)] = ref.Tensor.Shape
	}
	return ends{c, m.Ends()}
}

// findEnds finds the ends of both checkpoints.
func (e *Extraction) findEnds() {
	e.baseEnds, e.tunedEnds = endsOf(e.base, nil), endsOf(e.tuned, nil)
	if shape := e.tunedEnds.headShape(); shape != nil && e.baseEnds.Embedding == "" {
		e.baseEnds = endsOf(e.base, shape)
	}
	if shape := e.baseEnds.headShape(); shape != nil && e.tunedEnds.Embedding == "" {
		e.tunedEnds = endsOf(e.tuned, shape)
	}
}

// isTied reports whether both ends are certainly one tensor.
func (s *ends) isTied() bool { return s.of.Config.Found && s.Tied && s.Why == "" }

// embedding returns the checkpoint's own name for the input embedding, or "" if uncertain.
func (s *ends) embedding() string {
	if s.Embedding == "" {
		return ""
	}
	return naming.Index(s.of.Names()).Actual(s.Embedding)
}

// headShape returns the shape of the head, or nil if the files have none.
func (s *ends) headShape() []uint64 {
	for _, name := range s.of.Names() {
		if s.isHead(name) {
			ref, _ := s.of.Lookup(name)
			return ref.Tensor.Shape
		}
	}
	return nil
}

func (s *ends) isHead(name string) bool {
	return s.Head != "" && naming.StripWrappers(name) == s.Head
}

// counterpart returns the embedding that stands in for a head that only the other checkpoint
// stores, or nil if this checkpoint ties none.
func (s *ends) counterpart(head string, other *ends) *located {
	isHead := naming.IsHead(naming.Module(head)) || other.isHead(head)
	if !isHead || !s.isTied() {
		return nil
	}
	return locate(s.of, s.embedding())
}

// unless says how the change of a head that only the other checkpoint stores was measured, if it is
// uncertain whether this one ties its head to its embedding. It is "" in all other cases.
func (s *ends) unless(head string, other *ends) string {
	isHead := naming.IsHead(naming.Module(head)) || other.isHead(head)
	if !isHead || !s.Tied || s.isTied() {
		return ""
	}
	return fmt.Sprintf("; it counts whole, as if %s did not tie its head to its embedding (%s)", s.of.Path, s.Why)
}

// isTiedEmbedding reports whether a tensor of the base serves as both ends.
func (e *Extraction) isTiedEmbedding(name string) bool {
	return e.baseEnds.isTied() && naming.StripWrappers(name) == e.baseEnds.Embedding
}

// isTrunk reports whether base's class has a head and tuned's has none. Tensors that only base has
// were not removed then: tuned's class never had them.
func isTrunk(base, tuned *checkpoint.Checkpoint) bool {
	classes := tuned.Config.Architectures
	return len(classes) > 0 && !naming.HasHead(classes) && naming.HasHead(base.Config.Architectures)
}

// locate finds a tensor of the checkpoint.
func locate(c *checkpoint.Checkpoint, name string) *located {
	ref, ok := c.Lookup(name)
	if !ok {
		return nil
	}
	return &located{ref: ref}
}

// energy computes ‖Δ‖² of a left-out tensor. ok is false if NaN or infinity prevents that.
func (l *leftOut) energy(ctx context.Context, name string) (energy float64, ok bool, err error) {
	var shapes [2][]uint64
	for i, x := range []*located{l.base, l.tuned} {
		if x == nil {
			continue
		}
		if !x.dtype().IsFloat() {
			return 0, false, nil
		}
		shapes[i] = x.ref.Tensor.Shape
	}
	common := int64(0)
	a, b := shapes[0], shapes[1]
	if l.base != nil && l.tuned != nil && len(a) == len(b) && (len(a) == 0 || slices.Equal(a[1:], b[1:])) {
		common = min(l.base.ref.Tensor.Elements(), l.tuned.ref.Tensor.Elements())
		p := pair{name: name, base: *l.base, tuned: *l.tuned}
		if energy, err = p.energy(ctx, 0, common); err != nil {
			return 0, false, err
		}
	}
	for _, x := range []*located{l.base, l.tuned} {
		if x == nil {
			continue
		}
		more, err := x.energy(ctx, common)
		if err != nil {
			return 0, false, err
		}
		energy += more
	}
	return energy, energy-energy == 0, nil
}

// isUnchanged reports whether a tensor of integers has the same bytes in both checkpoints.
func (l *leftOut) isUnchanged(ctx context.Context) (bool, error) {
	if l.base == nil || l.tuned == nil || l.base.dtype().IsFloat() ||
		!slices.Equal(l.base.ref.Tensor.Shape, l.tuned.ref.Tensor.Shape) {
		return false, nil
	}
	return (&pair{base: *l.base, tuned: *l.tuned}).equal(ctx)
}

// energy sums the squares of n differences, starting at first.
func (p *pair) energy(ctx context.Context, first, n int64) (sum float64, err error) {
	var s pieceScratch
	dst := make([]float32, min(n, pieceElements))
	for end := first + n; first < end; first += pieceElements {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		var out seen
		if err := p.piece(ctx, dst[:min(end-first, pieceElements)], first, &s, &out); err != nil {
			return 0, err
		}
		sum += out.energy
	}
	return sum, nil
}

// energy sums the squares of the elements, starting at first.
func (l *located) energy(ctx context.Context, first int64) (sum float64, err error) {
	total := l.ref.Tensor.Elements()
	values := make([]float64, min(max(0, total-first), pieceElements))
	buf := make([]byte, 8*len(values))
	for ; first < total; first += pieceElements {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		v := values[:min(total-first, pieceElements)]
		raw, err := l.bytes(ctx, buf, first, len(v))
		if err != nil {
			return 0, err
		}
		dtype.Widen64(v, l.dtype(), raw)
		for _, x := range v {
			sum += x * x
		}
	}
	return sum, nil
}

// measure computes ‖Δ‖² of every left-out tensor, and returns the sum.
func (r *extracting) measure(ctx context.Context) (energy float64, err error) {
	for i := range r.left {
		l := &r.left[i]
		s := &r.report.Skipped[l.skipped]
		if same, err := l.isUnchanged(ctx); same || err != nil {
			s.Why = Unchanged
			if err != nil {
				return 0, err
			}
			continue
		}
		e, known, err := l.energy(ctx, s.Tensor)
		if err != nil {
			return 0, err
		}
		if known {
			s.energy = e
		} else {
			s.Why += whyUnknown
		}
	}
	for i := range r.report.Skipped {
		energy += r.report.Skipped[i].energy
	}
	return energy, nil
}

// share sets the shares of ‖Δ‖ of left-out tensors; all is ‖Δ‖² of all changes.
func (r *ExtractReport) share(all float64) {
	var left float64
	for i := range r.Skipped {
		s := &r.Skipped[i]
		s.Share = math.Sqrt(s.energy / all)
		left += s.energy
	}
	r.LeftOut = math.Sqrt(left / all)
}

// warnLeft warns about changed tensors left out without a request; all is ‖Δ‖² of all changes.
func (r *ExtractReport) warnLeft(all float64) {
	var names []string
	var energy float64
	for _, s := range r.Skipped {
		if s.energy > 0 && s.Why != whyExcluded && s.Why != whyBudget {
			names = append(names, s.Tensor)
			energy += s.energy
		}
	}
	if len(names) > 0 {
		r.Warnings = append(r.Warnings, fmt.Sprintf(
			"%s that changed %s not in the adapter, %.2g of |Δ|: %s",
			fault.Count(len(names), "tensor"), fault.Choose(len(names), "is", "are"), math.Sqrt(energy/all), fault.List(names, 3)))
	}
}
