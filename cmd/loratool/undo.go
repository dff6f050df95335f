package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/inspect"
	"github.com/loratool/loratool/merge"
)

// undoSuffix makes the default name of an undo record from that of the checkpoint beside which it lies.
const undoSuffix = ".undo"

func undoBeside(checkpoint string) string {
	return strings.TrimRight(checkpoint, `/\`) + undoSuffix
}

// optionalPath is the value of a flag that may stand without one: --undo, or --undo FILE.
type optionalPath struct {
	given bool
	path  string
}

func (o *optionalPath) Set(s string) error { o.given, o.path = true, s; return nil }

func (o *optionalPath) String() string { return o.path }

// recordFile is an undo record that is being written. It appears after the checkpoint that it belongs to, or not at all.
type recordFile struct {
	path   string
	force  bool
	stage  *fileio.Stage
	file   *os.File
	buffer *bufio.Writer
}

// checkRecord reports whether a record could be written to path beside the checkpoint out, by a run that reads inputs.
func checkRecord(path, out string, force bool, inputs []string) error {
	record, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	checkpoint, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	if record == checkpoint || strings.HasPrefix(record, checkpoint+string(filepath.Separator)) {
		return &fileio.OutputError{Path: path, Why: "is OUT, or inside it; the undo record lies beside it"}
	}
	place := fileio.Place{Path: path, Replace: force, Inputs: inputs, Known: isRecord, Kind: "an undo record"}
	return place.Check()
}

// isRecord reports whether what is at path is an undo record.
func isRecord(path string) bool {
	src, err := format.Open(path)
	if err != nil {
		return false
	}
	defer src.Close()
	return inspect.IsUndo(src)
}

func newRecordFile(path, out string, force bool, inputs []string) (*recordFile, error) {
	if err := checkRecord(path, out, force, inputs); err != nil {
		return nil, err
	}
	stage, err := fileio.NewStage(path, false)
	if err != nil {
		return nil, err
	}
	f, err := stage.Create("", 0)
	if err != nil {
		stage.Abort()
		return nil, err
	}
	return &recordFile{path: path, force: force, stage: stage, file: f, buffer: bufio.NewWriterSize(f, 1<<20)}, nil
}

// Write appends to the record.
func (r *recordFile) Write(p []byte) (int, error) { return r.buffer.Write(p) }

// commit puts the record in its place.
func (r *recordFile) commit(out string) error {
	err := errors.Join(r.buffer.Flush(), fileio.Close(r.file))
	if err == nil {
		err = r.stage.Commit(r.force)
	}
	if err != nil {
		return fmt.Errorf("%s is written, and its undo record is not: %w", out, err)
	}
	return nil
}

// abort removes what was not committed.
func (r *recordFile) abort() {
	r.file.Close()
	r.stage.Abort()
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
