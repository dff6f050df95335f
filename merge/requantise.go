package merge

import (
	"maps"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
)

// recoding has the codes of the weights that get new ones, by the names of the weights.
type recoding map[string]*checkpoint.Codes

// choose finds the quantised weights whose codes change: those that the adapters change, with
// Options.Requantise, and those from which a merge is removed that changed codes.
func (r recoding) choose(p *planner, d *decoding) error {
	if !p.options.Requantise && !p.removed.is() {
		return nil
	}
	for i := range d.weights {
		name := d.weights[i].Name
		t := p.targets[name]
		if t != nil && len(t.undo) > 0 && !t.hasRecord() {
			return fault.New(fault.Unsupported, "%q is quantised, and only the undo record of the merge can bring its codes back: what they lost cannot be subtracted", name).
				In(p.base.Path).WithHint("name the record with Removal.Records, or take the base")
		}
		if t == nil || !p.options.Requantise && !t.hasRecord() {
			continue
		}
		codes, err := codesFor(p, t, d.exact)
		if err != nil {
			return err
		}
		switch {
		case codes != nil:
			r[name] = codes
		case t.hasRecord():
			return fault.New(fault.Unsupported, "the removal restores the codes of %q, and the adapters that come next would have it decoded", name).
				WithHint("unmerge first, then merge")
		}
	}
	return nil
}

// hasRecord reports whether the plan removes a merge by a record.
func (t *target) hasRecord() bool {
	return slices.ContainsFunc(t.undo, func(s step) bool { return s.record != nil })
}

// codesFor returns the codes of a quantised weight if its change can be one of codes, else nil.
func codesFor(p *planner, t *target, base *checkpoint.Checkpoint) (*checkpoint.Codes, error) {
	codes := checkpoint.CodesOf(base, t.Name)
	switch {
	case codes == nil || feeds(p, t.Name) || t.Replace != nil || t.Rows != nil || codes.IsTransposed && t.HasResidual() || !isInRows(t, codes):
		return nil, nil
	case !t.changes():
		return codes, nil
	case !p.options.Requantise:
		return nil, nil
	case t.DoRA != nil:
		return nil, fault.New(fault.Unsupported, "the adapter rescales %q by DoRA, and no codes are computed for that", t.Name).
			WithHint("merge without Options.Requantise: the weight is decoded")
	case len(t.Deltas) > 0:
		return nil, fault.New(fault.Unsupported, "the update of %q is no product of two thin matrices, and no codes are computed for that", t.Name).
			WithHint("merge without Options.Requantise: the weight is decoded")
	}
	return codes, nil
}

// isInRows reports whether the rows of a weight are those of its codes.
func isInRows(t *target, codes *checkpoint.Codes) bool {
	_, nCols := t.Matrix()
	return nCols == codes.Cols || codes.IsTransposed && t.Stacked
}

// check leaves out the weights that must be decoded, and refuses a plan without any other.
func (r recoding) check(p *planner, d *decoding) error {
	maps.DeleteFunc(r, func(name string, _ *checkpoint.Codes) bool { return d.weight(name).isDecoded })
	switch {
	case !p.options.Requantise:
		return nil
	case len(r) == 0:
		schemes := make(map[string]bool)
		for i := range d.weights {
			if w := &d.weights[i]; w.target != nil {
				schemes[w.Scheme] = true
			}
		}
		if len(schemes) == 0 {
			return fault.New(fault.Unsupported, "the adapters change no weight of the base that is quantised").
				In(p.base.Path).WithHint("merge without Options.Requantise")
		}
		return fault.New(fault.Unsupported, "no weight that the adapters change can get new codes; they are in %s", fault.List(slices.Sorted(maps.Keys(schemes)), 3)).
			In(p.base.Path).WithHint("merge without Options.Requantise: the weights are decoded")
	case p.options.Stochastic && !r.isDithered():
		return fault.New(fault.Unsupported, "Options.Stochastic is for weights of FP8 and Q8_0, and the adapters change none").
			In(p.base.Path).WithHint("merge without Options.Stochastic")
	}
	return nil
}

func (r recoding) isDithered() bool {
	for name, codes := range r {
		if codes.Dither(0, name) != nil {
			return true
		}
	}
	return false
}

// settle makes the tensors of codes the targets, in place of the weights.
func (r recoding) settle(p *planner, base *checkpoint.Checkpoint) {
	for name, codes := range r {
		weight, undo := *p.targets[name], p.targets[name].undo
		weight.undo = nil
		weight.ref, _ = base.Lookup(name)
		weight.exact = weight.ref.Tensor
		c := &coded{weight: &weight, codes: codes}
		change := *weight.Change
		change.DType = dtype.F32
		if p.options.Stochastic {
			if c.dither = codes.Dither(p.options.Seed, name); c.dither != nil {
				change.DType = dtype.F64
			}
		}
		if codes.IsTransposed {
			change = transposed(change)
		}
		weight.Change = &change
		stored := change
		stored.Name, stored.Tensor = codes.Tensor.Name, resolve.Tensor{DType: codes.Tensor.DType, Shape: codes.Tensor.Shape}
		delete(p.targets, name)
		p.targets[stored.Name] = &target{Change: &stored, coded: c, undo: undo}
	}
}

// transposed returns the change of a stack of matrices that are stored transposed.
func transposed(c resolve.Change) resolve.Change {
	n := len(c.Shape)
	c.Shape = slices.Clone(c.Shape)
	c.Shape[n-2], c.Shape[n-1] = c.Shape[n-1], c.Shape[n-2]
	c.Terms = slices.Clone(c.Terms)
	for i := range c.Terms {
		x := &c.Terms[i]
		x.Left, x.Right, x.Transposed = x.Right, x.Left, !x.Transposed
	}
	return c
}

// announce says how many weights get new codes, and which are decoded all the same.
func (r recoding) announce(p *planner, nDecoded int) {
	n := 0
	for _, codes := range r {
		if p.targets[codes.Tensor.Name].changes() {
			n++
		}
	}
	switch {
	case n == 0:
		return
	case p.options.Stochastic:
		p.announce("the merge requantises %s of the base, with codes chosen at random in FP8 and Q8_0", fault.Count(n, "weight"))
	default:
		p.announce("the merge requantises %s of the base: each element gets a code again, which loses the part of ΔW that is smaller than its steps", fault.Count(n, "weight"))
	}
	if nDecoded > 0 {
		p.announce("%s %s decoded, in schemes that are not requantised, or because programs load %s together with one that is decoded",
			fault.Count(nDecoded, "weight"), fault.Choose(nDecoded, "is", "are"), fault.Choose(nDecoded, "it", "each"))
	}
}
