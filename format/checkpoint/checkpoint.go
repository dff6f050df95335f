// Package checkpoint opens the checkpoints that package merge merges into and package rank extracts
// from: safetensors files or pickles of torch.save, on disk, in an fs.FS or in memory.
//
//	base, err := checkpoint.Open(ctx, "base")
//	…
//	defer base.Close()
//	plan, err := merge.New(ctx, base, adapters, merge.Options{})
//
// Functions that take a path, such as merge.Open, open and close the checkpoint themselves.
package checkpoint

import (
	"context"
	"io"
	"io/fs"

	inner "github.com/loratool/loratool/internal/checkpoint"
)

// Checkpoint is an open model: a base, a merged model, or a fine-tune. Only headers and
// configurations have been read. Several plans and extractions may share it, also at the same time.
// The caller closes it after they have run.
type Checkpoint inner.Handle

// Open opens the checkpoint at path: a safetensors file or a pickle of torch.save, or a directory
// with one such file or with shards and their index. A pickle reads like the safetensors file that
// safetensors.torch.save_file writes with its tensors, and outputs are safetensors. ctx bounds only
// this call. Errors wrap a kind of package format, or are I/O errors.
func Open(ctx context.Context, path string) (*Checkpoint, error) {
	return handleOf(inner.Open(ctx, path))
}

// OpenFS opens a file or directory of an fs.FS, such as output.Memory's; "." is its root. Files
// that implement io.ReaderAt are read by position, from several goroutines. All other files are
// read into memory.
func OpenFS(ctx context.Context, files fs.FS, name string) (*Checkpoint, error) {
	return handleOf(inner.OpenFS(ctx, files, name))
}

// OpenReader opens a single file of weights of size bytes, such as a bytes.Reader. Messages call
// it name. The checkpoint reads r by position, from several goroutines, until Close; it does not
// close r.
func OpenReader(ctx context.Context, name string, r io.ReaderAt, size int64) (*Checkpoint, error) {
	return handleOf(inner.New(ctx, name, r, size))
}

func handleOf(c *inner.Checkpoint, err error) (*Checkpoint, error) {
	if err != nil {
		return nil, err
	}
	return (*Checkpoint)(inner.NewHandle(c)), nil
}

func (c *Checkpoint) opened() *inner.Checkpoint { return (*inner.Handle)(c).Checkpoint() }

// Close closes the files of the checkpoint.
func (c *Checkpoint) Close() error { return c.opened().Close() }

// History lists the merges that the checkpoint records in its stamps, in the order of files and
// merges. It ignores stamps that it cannot parse, since other tools may use the same keys.
func (c *Checkpoint) History() []Merged {
	all := []Merged{}
	for _, m := range c.opened().History() {
		adapters := make([]StampAdapter, len(m.Adapters))
		for i, a := range m.Adapters {
			adapters[i] = StampAdapter(a)
		}
		all = append(all, Merged{m.File, m.Key, Stamp{m.Tool, adapters, m.Added, m.Reshaped, m.BaseAs, m.BaseAsSkip, m.Requantise, m.Seed}})
	}
	return all
}

// Merged is one entry of a checkpoint's history: the stamp that one merge left in one file.
type Merged struct {
	File string `json:"file"` // file within the checkpoint
	Key  string `json:"key"`  // key within the file's metadata
	Stamp
}

// Stamp is a merge's own entry in the metadata of the files that it changed.
type Stamp struct {
	Tool     string         `json:"tool"`               // name and version of the program
	Adapters []StampAdapter `json:"adapters"`           // merged together
	Added    []string       `json:"added,omitempty"`    // tensors that the base lacked, sorted
	Reshaped []string       `json:"reshaped,omitempty"` // tensors that the base had in another shape, sorted
	// BaseAs and BaseAsSkip are those of merge.Options: the merge gave the base the values of a
	// scheme first, but for these modules. Releases that know no BaseAs have left both out.
	BaseAs     string   `json:"base_as,omitempty"`
	BaseAsSkip []string `json:"base_as_skip,omitzero"`
	// Requantise tells how a merge with merge.Options.Requantise chose codes: "nearest", or
	// "stochastic" by Seed. Other merges, and early releases, have left both out.
	Requantise string `json:"requantise,omitempty"`
	Seed       int64  `json:"seed,omitzero"`
}

// StampAdapter is one adapter of a stamp.
type StampAdapter struct {
	Name    string  `json:"name"`
	Content string  `json:"content"` // content id (format.ContentID), independent of the adapter's dialect
	Weight  float64 `json:"weight"`
}
