package resolve

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// twins are tensors that an adapter saves for one tensor of the base under the names of several
// modules.
type twins struct{ *resolver }

// drop leaves out the copies of a tied embedding that an adapter saves for its other ends: PEFT
// saves each module by itself, and the base has one tensor for all. Equal values leave nothing to
// decide. A saved tensor that the base lacks, with the same bytes as a saved tensor that the base
// has, is that tensor under the name of a module that shares it.
func (r twins) drop() error {
	if e := r.ends(); !e.Tied || e.Why != "" || r.reading.Tied == Untie {
		return nil
	}
	sharing := make(map[string]bool) // modules that share the weight of another one
	kept := slices.Clone(r.model.Beside)
	for _, leaf := range []string{"weight", "bias"} {
		for i := range r.model.Beside {
			b := &r.model.Beside[i]
			module := naming.Module(b.Target)
			if b.Action != format.Replace || naming.Leaf(b.Target) != leaf || r.isInBase(b.Target) || leaf == "bias" && !sharing[module] {
				continue
			}
			same, err := r.hasCopyInBase(b)
			if err != nil {
				return err
			}
			if same {
				sharing[module] = true
				kept = slices.DeleteFunc(kept, func(k format.Beside) bool { return k.Target == b.Target })
			}
		}
	}
	if r.hasTwins = len(sharing) > 0; r.hasTwins {
		model := *r.model
		model.Beside = kept
		r.model = &model
	}
	return nil
}

// isInBase reports whether the base has a tensor whose name ends as this one does.
func (r twins) isInBase(name string) bool { return r.names.HasTail(tail(name, 2)) }

// hasCopyInBase reports whether the adapter saves the same bytes for a tensor that the base has.
func (r twins) hasCopyInBase(b *format.Beside) (bool, error) {
	for i := range r.model.Beside {
		other := &r.model.Beside[i]
		if other.Action != format.Replace || other == b || naming.Leaf(other.Target) != naming.Leaf(b.Target) || !r.isInBase(other.Target) {
			continue
		}
		if same, err := sameBlob(r.blob(b.Tensor), r.blob(other.Tensor)); same || err != nil {
			return same, err
		}
	}
	return false, nil
}
