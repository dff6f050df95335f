package rank

import (
	"context"
	"io"
	"io/fs"

	"github.com/loratool/loratool/internal/checkpoint"
)

// Checkpoint is an open model. Only headers and configurations have been read. Several extractions
// may share it. The caller closes it after they have run.
type Checkpoint struct{ checkpoint *checkpoint.Checkpoint }

// OpenCheckpoint opens the checkpoint at path: a safetensors file, or a directory with one
// safetensors file or with shards and their index. Errors wrap a kind of package format, or are I/O
// errors.
func OpenCheckpoint(ctx context.Context, path string) (*Checkpoint, error) {
	return newCheckpoint(checkpoint.Open(ctx, path))
}

// OpenCheckpointFS opens a file or directory of an fs.FS; "." is its root. Files that implement
// io.ReaderAt are read by position, from several goroutines. All other files are read into memory.
func OpenCheckpointFS(ctx context.Context, files fs.FS, name string) (*Checkpoint, error) {
	return newCheckpoint(checkpoint.OpenFS(ctx, files, name))
}

// OpenCheckpointReader opens a single safetensors file of size bytes, such as one in memory.
// Messages call it name. The checkpoint reads r by position, from several goroutines, until Close;
// it does not close r.
func OpenCheckpointReader(ctx context.Context, name string, r io.ReaderAt, size int64) (*Checkpoint, error) {
	return newCheckpoint(checkpoint.New(ctx, name, r, size))
}

func newCheckpoint(c *checkpoint.Checkpoint, err error) (*Checkpoint, error) {
	if err != nil {
		return nil, err
	}
	return &Checkpoint{c}, nil
}

// Close closes the files of the checkpoint.
func (c *Checkpoint) Close() error { return c.checkpoint.Close() }
