package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/merge"
)

// openAdapters opens the adapters at paths and gives each its weight.
func (o *withoutOption) openAdapters(ctx context.Context, paths []string, weights []float64, closers *closers) ([]merge.Adapter, error) {
	options, err := o.opening(paths...)
	if err != nil {
		return nil, err
	}
	adapters := make([]merge.Adapter, len(paths))
	for i, path := range paths {
		src, err := convert.Open(ctx, path, options[i])
		if err != nil {
			return nil, err
		}
		closers.add(src)
		adapters[i] = merge.Adapter{Source: src, Name: path, Weight: weights[i]}
	}
	return adapters, nil
}

// openRecords opens the undo records at paths or, without paths, the record beside the merged
// checkpoint.
func openRecords(ctx context.Context, paths []string, merged string, closers *closers) ([]*merge.Record, error) {
	if len(paths) == 0 {
		path := undoBeside(merged)
		fileio.Finish(filepath.Dir(path)) // a run may have been killed between the checkpoint and its record
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, nil // the library reports the missing record
		}
		paths = []string{path}
	}
	var records []*merge.Record
	for _, path := range paths {
		r, closer, err := openRecord(ctx, path)
		if err != nil {
			return nil, err
		}
		closers.add(closer)
		records = append(records, r)
	}
	return records, nil
}

// openCheckpoints opens the checkpoints at paths.
func openCheckpoints(ctx context.Context, closers *closers, paths ...string) ([]*checkpoint.Checkpoint, error) {
	var all []*checkpoint.Checkpoint
	for _, path := range paths {
		x, err := checkpoint.Open(ctx, path)
		if err != nil {
			return nil, err
		}
		closers.add(x)
		all = append(all, x)
	}
	return all, nil
}

// closers are the files that a command has opened.
type closers []io.Closer

func (c *closers) add(x io.Closer) { *c = append(*c, x) }

func (c *closers) close() {
	for _, x := range *c {
		x.Close()
	}
}
