package audit

import (
	"context"
	"errors"
	"reflect"
	"slices"
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
	seen     *checkpoint.Checkpoint // with the values of Options.BaseAs
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

// asResolved converts the adapters for package resolve.
func (a *auditor) asResolved() []resolve.Adapter {
	all := make([]resolve.Adapter, len(a.adapters))
	for i, x := range a.adapters {
		all[i] = resolve.Adapter(x)
	}
	return all
}

// byName indexes changes by their tensors.
func byName(changes []*resolve.Change) map[string]*resolve.Change {
	all := make(map[string]*resolve.Change, len(changes))
	for _, c := range changes {
		all[c.Name] = c
	}
	return all
}

// ofBase returns the tensor without its change: its values are those of the base.
func (e *expected) ofBase() *expected {
	return &expected{OutputTensor: e.OutputTensor, base: e.base, merged: e.merged}
}

// stream reads elements of a tensor, as they are stored.
type stream struct {
	dtype dtype.Type
	raw   []byte
	get   func(ctx context.Context, p []byte, off int64) error
}

// values returns streams of the values that the merge adds to, and of the merged ones, each of most
// elements at a time. The first are those of the base, or those that an adapter replaces them with.
func (e *expected) values(most int) (w, m stream) {
	w = stream{e.base.DType, nil, e.base.ReadAt}
	if e.change != nil && e.change.Replace != nil {
		b := e.change.Replace
		w = stream{b.Tensor().DType, nil, func(_ context.Context, p []byte, off int64) error { return b.Source.ReadBlobAt(p, b.Index, off) }}
	}
	m = stream{e.merged.DType, nil, e.merged.ReadAt}
	w.raw, m.raw = make([]byte, most*w.dtype.Size()), make([]byte, most*m.dtype.Size())
	return w, m
}

// read reads n elements from the first on.
func (s *stream) read(ctx context.Context, first int64, n int) error {
	size := s.dtype.Size()
	return s.get(ctx, s.raw[:n*size], first*int64(size))
}

// at returns element i of those that were read.
func (s *stream) at(i int64) float64 { return dtype.Load(s.dtype, s.raw, int(i)) }

// elementsOf holds elements of both tensors in float64.
type elementsOf struct {
	w, m         []float64
	base, merged stream
}

func newElements(e *expected, most int) *elementsOf {
	b := &elementsOf{w: make([]float64, most), m: make([]float64, most)}
	b.base, b.merged = e.values(most)
	return b
}

// read reads n elements from the first on. The slices w and m have their full length still.
func (b *elementsOf) read(ctx context.Context, first int64, n int) error {
	if err := errors.Join(b.base.read(ctx, first, n), b.merged.read(ctx, first, n)); err != nil {
		return err
	}
	dtype.Widen64(b.w[:n], b.base.dtype, b.base.raw)
	dtype.Widen64(b.m[:n], b.merged.dtype, b.merged.raw)
	return nil
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

// ownStamps lists the stamps of the merged checkpoint that the base does not have.
func (a *auditor) ownStamps() []checkpoint.Merged {
	return slices.DeleteFunc(a.merged.History(), func(m checkpoint.Merged) bool {
		return slices.ContainsFunc(a.stored.History(), func(b checkpoint.Merged) bool { return reflect.DeepEqual(b.Stamp, m.Stamp) })
	})
}

// Options tune Run.
type Options struct {
	merge.Reading
	Workers int  // goroutines; 0 means one per processor
	AnyBase bool // skip the check that the adapters were made for this base
	// BaseAs and BaseAsSkip are the claim that the merge had these merge.Options. Without BaseAs
	// the stamps of the merged checkpoint tell.
	BaseAs     string
	BaseAsSkip []string
	// AnyWeight accepts whatever weights the adapters have, if they are the same in all tensors.
	AnyWeight bool
	// Progress is called from several goroutines with the number of bytes just compared. The sum is
	// the size of the base. nil reports nothing.
	Progress func(bytes int64)
}

// options are those of the merge that should have been.
func (a *auditor) options() merge.Options {
	return merge.Options{
		Reading: a.o.Reading, Workers: a.o.Workers, Progress: a.o.Progress, AnyBase: a.o.AnyBase, Again: true, AllowNonFinite: true,
		BaseAs: a.o.BaseAs, BaseAsSkip: a.o.BaseAsSkip,
		GrowVocabulary: a.shaping().GrowVocabulary, AddTensors: a.shaping().AddTensors, Dequantise: checkpoint.IsQuantised(a.stored), // whether the merged one has codes or not
	}
}

// shaping allows the merge to add tensors and rows, since an audit takes the checkpoint as it is.
func (a *auditor) shaping() resolve.Shaping {
	if a.stored.IsPipeline() {
		return resolve.Shaping{}
	}
	return resolve.Shaping{Untie: a.o.Tied == merge.Untie, GrowVocabulary: true, AddTensors: true}
}
