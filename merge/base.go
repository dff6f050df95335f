package merge

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
)

// Open plans the merge of adapters into the checkpoint at path. It fails, before anything is written, if any tensor of an
// adapter could not be used exactly once. The caller closes the plan. Errors wrap a kind of package format.
func Open(ctx context.Context, path string, adapters []Adapter, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *Base) (*Plan, error) { return b.Merge(ctx, adapters, options) })
}

// OpenUnmerge plans to take adapters out of the merged checkpoint at path. With records the result is the checkpoint before these
// merges byte for byte, headers included, and proved by digest.
func OpenUnmerge(ctx context.Context, path string, remove Removal, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *Base) (*Plan, error) { return b.Unmerge(ctx, remove, options) })
}

// OpenSwap plans to take adapters out of the merged checkpoint at path and to merge others in the same pass. The result is that of
// merging add into the checkpoint before the merges that are taken out. To keep an adapter of a record, name it on both sides.
func OpenSwap(ctx context.Context, path string, remove Removal, add []Adapter, options Options) (*Plan, error) {
	return openPlan(ctx, path, func(b *Base) (*Plan, error) { return b.Swap(ctx, remove, add, options) })
}

// Base is an opened base model, or a merged one. Only headers and configurations have been read.
// Several plans may use it at once. The caller closes it when they have run.
type Base struct{ checkpoint *checkpoint.Checkpoint }

// OpenBase opens the checkpoint at path: a safetensors file, or a directory with one or with shards
// and their index. Errors wrap a kind of package format, or are I/O errors.
func OpenBase(ctx context.Context, path string) (*Base, error) {
	return newBase(checkpoint.Open(ctx, path))
}

// OpenBaseFS is OpenBase for a file or a directory of an fs.FS; "." is its root. Files that implement
// io.ReaderAt are read by position, from several goroutines. Any other is read into memory whole.
func OpenBaseFS(ctx context.Context, files fs.FS, name string) (*Base, error) {
	return newBase(checkpoint.OpenFS(ctx, files, name))
}

// OpenBaseReader opens a safetensors file of size bytes that has nothing beside it, such as one in
// memory. Messages call it name. r is read by position, from several goroutines, until the base is
// closed; it is not closed itself.
func OpenBaseReader(ctx context.Context, name string, r io.ReaderAt, size int64) (*Base, error) {
	return newBase(checkpoint.New(ctx, name, r, size))
}

func newBase(c *checkpoint.Checkpoint, err error) (*Base, error) {
	if err != nil {
		return nil, err
	}
	return &Base{c}, nil
}

// Close closes the files of the base.
func (b *Base) Close() error { return b.checkpoint.Close() }

// History lists what the stamps of the base say was merged into it; see the function History.
func (b *Base) History() []Merged { return historyOf(b.checkpoint) }

// Merge is Open for a base that is open already.
func (b *Base) Merge(ctx context.Context, adapters []Adapter, options Options) (*Plan, error) {
	return newPlan(ctx, b.checkpoint, removal{}, adapters, options)
}

// Unmerge is OpenUnmerge for a checkpoint that is open already.
func (b *Base) Unmerge(ctx context.Context, remove Removal, options Options) (*Plan, error) {
	return b.remove(ctx, remove, nil, options)
}

// Swap is OpenSwap for a checkpoint that is open already.
func (b *Base) Swap(ctx context.Context, remove Removal, add []Adapter, options Options) (*Plan, error) {
	if len(add) == 0 {
		return nil, fault.New(fault.Mismatch, "no adapter to put in")
	}
	if remove.Approximate {
		return nil, fault.New(fault.Unsupported, "a swap needs the undo record: a result that stands on an approximate base is not the merge of anything")
	}
	return b.remove(ctx, remove, add, options)
}

func (b *Base) remove(ctx context.Context, remove Removal, add []Adapter, options Options) (*Plan, error) {
	removed, err := findRemoval(ctx, b.checkpoint, remove)
	if err != nil {
		return nil, err
	}
	return newPlan(ctx, b.checkpoint, removed, add, options)
}

// openPlan opens the base at path for a plan, which closes it.
func openPlan(ctx context.Context, path string, plan func(*Base) (*Plan, error)) (*Plan, error) {
	b, err := OpenBase(ctx, path)
	if err != nil {
		return nil, err
	}
	p, err := plan(b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	p.own = b
	return p, nil
}
