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

// What an adapter leaves out counts in its error. Of a tensor that both checkpoints have in one
// shape, that is Δ. A row that only one of them has counts whole, as if the other one had zeros
// there, and so does a tensor that only one has, or that has another width. Only a head that one of
// them ties to its embedding has a better counterpart than zeros: that embedding.

// whyUnknown follows the reason for what cannot be measured.
const whyUnknown = "; its share of Δ is not known"

// leave lists a tensor as skipped and as one to measure. Either reference may be missing.
func (e *Extraction) leave(name, why string, base, tuned *located) {
	e.left = append(e.left, leftOut{skipped: len(e.skipped), base: base, tuned: tuned})
	e.skip(name, "%s", why)
}

// endsOf finds the ends of a checkpoint. A head that only the other checkpoint has helps to tell
// the embedding by its shape; nil where there is none.
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

// isTied reports whether it is certain that both ends are one tensor.
func (s *ends) isTied() bool { return s.of.Config.Found && s.Tied && s.Why == "" }

// embedding is the input embedding by the checkpoint's own name for it, "" where it is not certain.
func (s *ends) embedding() string {
	if s.Embedding == "" {
		return ""
	}
	return naming.Index(s.of.Names()).Actual(s.Embedding)
}

// headShape is the shape of the head, nil where the files hold none.
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

// counterpart is the embedding to which a checkpoint ties the head that it does not have and the
// other one has; nil where it ties none.
func (s *ends) counterpart(head string, other *ends) *located {
	isHead := naming.IsHead(naming.Module(head)) || other.isHead(head)
	if !isHead || !s.isTied() {
		return nil
	}
	return locate(s.of, s.embedding())
}

// isTiedEmbedding reports whether a tensor of the base is both of its ends.
func (e *Extraction) isTiedEmbedding(name string) bool {
	return e.baseEnds.isTied() && naming.StripWrappers(name) == e.baseEnds.Embedding
}

// isTrunk reports whether tuned is of a class without a head, and base of one with a head: what
// only base has is not gone then, it was never in the class.
func isTrunk(base, tuned *checkpoint.Checkpoint) bool {
	classes := tuned.Config.Architectures
	return len(classes) > 0 && !naming.HasHead(classes) && naming.HasHead(base.Config.Architectures)
}

// locate finds a tensor that the checkpoint has.
func locate(c *checkpoint.Checkpoint, name string) *located {
	ref, ok := c.Lookup(name)
	if !ok {
		return nil
	}
	return &located{ref: ref}
}

// energy is ‖Δ‖² of what is left out; ok is false where it cannot be told, for values that are no
// numbers.
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

// energy is the sum of the squares of n differences from first on.
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

// energy is the sum of the squares of the elements from first on.
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

// measure finds what each tensor that is left out has of Δ, and returns ‖Δ‖² of all of them.
func (r *extracting) measure(ctx context.Context) (energy float64, err error) {
	for i := range r.left {
		l := &r.left[i]
		s := &r.report.Skipped[l.skipped]
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

// share gives what is left out its share of ‖Δ‖, where ‖Δ‖² is all.
func (r *ExtractReport) share(all float64) {
	var left float64
	for i := range r.Skipped {
		s := &r.Skipped[i]
		s.Share = math.Sqrt(s.energy / all)
		left += s.energy
	}
	r.LeftOut = math.Sqrt(left / all)
}

// warnLeft names what is left out though nobody has asked for it; ‖Δ‖² is all.
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
			"%d tensors that changed are not in the adapter, %.2g of |Δ|: %s",
			len(names), math.Sqrt(energy/all), fault.List(names, 3)))
	}
}
