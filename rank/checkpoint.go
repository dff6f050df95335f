package rank

import (
	"context"
	"io"
	"io/fs"

	"github.com/loratool/loratool/internal/checkpoint"
)

// Checkpoint is an opened model. Only headers and configurations have been read. Several
// extractions may use it at once. The caller closes it when they have run.
type Checkpoint struct{ checkpoint *checkpoint.Checkpoint }

// OpenCheckpoint opens the checkpoint at path: a safetensors file, or a directory with one or with
// shards and their index. Errors wrap a kind of package format, or are I/O errors.
func OpenCheckpoint(ctx context.Context, path string) (*Checkpoint, error) {
	return newCheckpoint(checkpoint.Open(ctx, path))
}

// OpenCheckpointFS is OpenCheckpoint for a file or a directory of an fs.FS; "." is its root. Files
// that implement io.ReaderAt are read by position, from several goroutines. Any other is read into
// memory whole.
func OpenCheckpointFS(ctx context.Context, files fs.FS, name string) (*Checkpoint, error) {
	return newCheckpoint(checkpoint.OpenFS(ctx, files, name))
}

// OpenCheckpointReader opens a safetensors file of size bytes that has nothing beside it, such as
// one in memory. Messages call it name. r is read by position, from several goroutines, until the
// checkpoint is closed; it is not closed itself.
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
