package audit

import (
	"context"
	"sync"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/merge"
)

// auditor is the state of Run.
type auditor struct {
	ctx      context.Context
	o        *Options
	stored   *checkpoint.Checkpoint // the base as it is
	base     *checkpoint.Checkpoint // the base with the tensors that the merge needs
	merged   *checkpoint.Checkpoint
	adapters []merge.Adapter
	checked  *resolve.Checked
	changes  map[string]*resolve.Change
	expected []*expected
	report   *Report
	leaks    bool // an adapter changes one of two tied ends, and both have changed

	once          sync.Once
	otherReadings []reading // see readings
}

// examination judges one tensor.
type examination struct {
	*auditor
	e *expected
}

// reading is another way to read the adapters, with the changes that it makes.
type reading struct {
	text    string
	changes map[string]*resolve.Change
}

// isEnd reports whether a tensor can be one of the two ends of a tie.
func isEnd(name string) bool {
	module := naming.Module(naming.StripWrappers(name))
	return naming.IsHead(module) || naming.IsInputEmbedding(module)
}

// readBase reads the values that the merge adds to: those of the base, or those that an adapter
// replaces them with.
func (e *expected) readBase(ctx context.Context, dst []float64, raw []byte, first int64) error {
	if e.change == nil || e.change.Replace == nil {
		return wide(ctx, e.base, dst, raw, first)
	}
	t := e.change.Replace.Tensor()
	size := int64(t.DType.Size())
	raw = raw[:int64(len(dst))*size]
	if err := e.change.Replace.Source.ReadBlobAt(raw, e.change.Replace.Index, first*size); err != nil {
		return err
	}
	dtype.Widen64(dst, t.DType, raw)
	return nil
}

// wide reads elements of a tensor in float64.
func wide(ctx context.Context, t *checkpoint.Tensor, dst []float64, raw []byte, first int64) error {
	size := int64(t.DType.Size())
	raw = raw[:int64(len(dst))*size]
	if err := t.ReadAt(ctx, raw, first*size); err != nil {
		return err
	}
	dtype.Widen64(dst, t.DType, raw)
	return nil
}

// elementsOf holds elements of the base and of the merged tensor.
type elementsOf struct {
	w, m []float64
	raw  []byte
}

func newElements(most int) *elementsOf {
	return &elementsOf{w: make([]float64, most), m: make([]float64, most), raw: make([]byte, 8*most)}
}

// read reads n elements from the first on. The slices w and m have their full length still.
func (b *elementsOf) read(ctx context.Context, e *expected, first int64, n int) error {
	if err := e.readBase(ctx, b.w[:n], b.raw, first); err != nil {
		return err
	}
	return wide(ctx, e.merged, b.m[:n], b.raw, first)
}

// isSpecial returns the reason why the update of a tensor is not the sum of the thin products of
// its adapters, "" if it is.
func isSpecial(c *resolve.Change) string {
	switch {
	case c.Rows != nil:
		return "an adapter replaces rows of it"
	case len(c.Deltas) > 0:
		return "its ΔW is no product of thin factors"
	case c.HasResidual():
		return "the adapter's initialisation took a part out of the base"
	}
	return ""
}

// isReplaced reports whether adapters only replace values of a tensor.
func isReplaced(c *resolve.Change) bool {
	return (c.Replace != nil || c.Rows != nil) && len(c.Terms)+len(c.Deltas) == 0
}

// Options tune Run.
type Options struct {
	merge.Reading
	Workers int  // goroutines; 0 means one per processor
	AnyBase bool // skip the check that the adapters were made for this base
	// AnyWeight accepts whatever weights the adapters have, if they are the same in all tensors.
	AnyWeight bool
	// Progress is called from several goroutines with the number of bytes just compared. The sum is
	// the size of the base. nil reports nothing.
	Progress func(bytes int64)
}
