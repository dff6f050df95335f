package resolve

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// beside is a tensor outside the adapter's layers that the merge puts in place.
type beside struct {
	*resolver
	*format.Beside
}

// formBeside returns the form of a tensor outside the layers, or nil if only training needs the
// tensor, or nothing does.
func (r *resolver) formBeside(b *format.Beside) form {
	if b.Action == format.Opaque {
		if slices.Contains(r.features[format.FeatureUnloaded], b.Target) {
			return nil
		}
		for _, f := range []format.Feature{format.FeatureVeLoRA, format.FeatureMonteCLoRA} {
			if slices.Contains(r.features[f], b.Target) {
				r.notes.of(b.Target, "the state of the adapter's training is left out")
				return nil
			}
		}
	}
	if b.Action == format.Difference {
		return newDifference(r, b)
	}
	return &beside{r, b}
}

func (b *beside) wants() []string {
	if b.Action == format.Opaque {
		return nil
	}
	return []string{b.Target}
}

func (b *beside) add() error {
	if b.Action == format.Opaque {
		return fault.New(fault.Unsupported, "tensor %q has no known meaning", b.Target)
	}
	if b.Weight != 1 {
		return fault.New(fault.Unsupported, "the adapter replaces %q, so its weight must be 1, not %v", b.Target, b.Weight).
			WithHint("use the weight 1")
	}
	if b.fold != nil {
		if folded, err := (tied{b.resolver}).isFolded(b.Beside); folded || err != nil {
			return err
		}
	}
	c, err := b.change(b.Target, b.isCounter())
	if err != nil {
		return err
	}
	have := b.blob(b.Tensor).Tensor()
	if !have.DType.IsFloat() && have.DType != c.DType {
		return fault.New(fault.Mismatch, "the adapter saves %q as %v, but the base stores %v", b.Target, have.DType, c.DType)
	}
	if b.Action == format.Rows {
		return b.addRows(c, have)
	}
	if c.Replace != nil {
		return fault.New(fault.Mismatch, "%q is replaced twice", c.Name).
			WithHint(hintOneReplacement)
	}
	if !slices.Equal(have.Shape, c.Shape) {
		return otherShape(b.Target, have.Shape, c.Shape)
	}
	blob := b.blob(b.Tensor)
	c.Replace = &blob
	return nil
}

func (b *beside) addRows(c *Change, have *format.Tensor) error {
	if len(have.Shape) != 2 || len(c.Shape) != 2 || have.Shape[1] != c.Shape[1] {
		return fault.New(fault.Mismatch, "the trained token rows of %q have shape %d, but the base has shape %d", b.Target, have.Shape, c.Shape)
	}
	if c.Rows != nil {
		return fault.New(fault.Mismatch, "rows of %q are replaced twice", c.Name).
			WithHint(hintOneReplacement)
	}
	for _, row := range b.Rows {
		if row < 0 || uint64(row) >= c.Shape[0] {
			return fault.New(fault.Mismatch, "trainable_token_indices has the token %d, but %q of the base has %s", row, c.Name, fault.Count(int64(c.Shape[0]), "row")).
				WithHint("the vocabulary was resized for the adapter, which does not hold all of the new rows: resize the base's embeddings first")
		}
	}
	c.Rows = &Rows{Blob: b.blob(b.Tensor), Order: b.Rows}
	return nil
}

// isCounter reports whether base and adapter both store an integer: PEFT saves the batch counter of
// a normalisation with its module. Merge copies it.
func (b *beside) isCounter() bool {
	return b.Action == format.Replace && b.tensor(b.Target).DType == dtype.I64 && b.blob(b.Tensor).Tensor().DType == dtype.I64
}
