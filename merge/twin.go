package merge

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/naming"
)

// dropTwins leaves out what an adapter saves of a tied embedding for its other ends: PEFT saves
// each module for itself, and the base has one tensor for all. Where the values are the same there
// is nothing to decide: a saved tensor that the base lacks, with the very bytes of a saved one that
// the base has, is that tensor under the name of a module that shares it.
func (r *resolver) dropTwins() error {
	if tied, certain := r.isTied(); !tied || !certain || r.plan.options.Tied == Untie {
		return nil
	}
	twins := make(map[string]bool) // modules that share the weight of another one
	kept := slices.Clone(r.adapter.Beside)
	for _, leaf := range []string{"weight", "bias"} {
		for i := range r.adapter.Beside {
			b := &r.adapter.Beside[i]
			module := naming.Module(b.Target)
			if b.Action != format.Replace || naming.Leaf(b.Target) != leaf || r.isInBase(b.Target) || leaf == "bias" && !twins[module] {
				continue
			}
			same, err := r.hasCopyInBase(b)
			if err != nil {
				return err
			}
			if same {
				twins[module] = true
				kept = slices.DeleteFunc(kept, func(k format.Beside) bool { return k.Target == b.Target })
			}
		}
	}
	if r.hasTwins = len(twins) > 0; r.hasTwins {
		adapter := *r.adapter
		adapter.Beside = kept
		r.adapter = &adapter
	}
	return nil
}

// isCounter reports whether the adapter saves a whole number where the base has one: the count of batches of a normalisation, which
// PEFT saves with its module. It is copied, not computed with.
func (r *resolver) isCounter(name string, ref checkpoint.Ref) bool {
	isReplaced := func(b format.Beside) bool {
		return b.Action == format.Replace && b.Target == name && r.blob(b.Tensor).tensor().DType == dtype.I64
	}
	return ref.Tensor.DType == dtype.I64 && slices.ContainsFunc(r.adapter.Beside, isReplaced)
}

// isInBase reports whether the base has a tensor whose name ends as this one does.
func (r *resolver) isInBase(name string) bool { return r.names.HasTail(tail(name, 2)) }

// hasCopyInBase reports whether the adapter saves the same bytes for a tensor that the base has.
func (r *resolver) hasCopyInBase(b *format.Beside) (bool, error) {
	for i := range r.adapter.Beside {
		other := &r.adapter.Beside[i]
		if other.Action != format.Replace || other == b || naming.Leaf(other.Target) != naming.Leaf(b.Target) || !r.isInBase(other.Target) {
			continue
		}
		if same, err := sameBlob(r.blob(b.Tensor), r.blob(other.Tensor)); same || err != nil {
			return same, err
		}
	}
	return false, nil
}
