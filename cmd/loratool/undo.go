package main

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/merge"
)

// undoSuffix is the ending that turns the name of a checkpoint into that of its undo record.
const undoSuffix = ".undo"

func undoBeside(checkpoint string) string {
	return strings.TrimRight(checkpoint, `/\`) + undoSuffix
}

// openRecord opens an undo record.
func openRecord(ctx context.Context, path string) (*merge.Record, io.Closer, error) {
	f, size, err := fileio.Open(path)
	if err != nil {
		return nil, nil, err
	}
	r, err := merge.OpenRecord(ctx, path, f, size)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return r, f, nil
}
