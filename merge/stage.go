package merge

import (
	"bufio"
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/undo"
)

// CheckOutput reports whether Run can write to out and to Options.UndoFile. It checks that they do
// not exist or may be replaced, that they are neither an input nor each other, that their
// directories are writable, and that the disk has room.
func (p *Plan) CheckOutput(out string) error {
	out = filepath.Clean(out)
	inputs := inputsOf(p)
	place := fileio.Place{
		Path: out, IsDir: p.base.IsDir, Replace: p.options.Replace, Inputs: inputs, Files: outputNames(p),
		Known: isCheckpoint, Kind: "a checkpoint", Bytes: diskBytes(p),
	}
	if err := place.Check(); err != nil {
		return err
	}
	if p.base.IsDir && strings.EqualFold(filepath.Ext(out), ".safetensors") {
		return &OutputError{Path: out, Why: "has the name of a file, but the base is a directory and so is the output"}
	}
	if p.options.UndoFile == "" {
		return nil
	}
	record := fileio.Place{
		Path: p.options.UndoFile, Replace: p.options.Replace, Inputs: inputs, Apart: []string{out},
		Known: isRecord, Kind: "an undo record",
	}
	return record.Check()
}

// OutputError is an output path that Run cannot use. It wraps fs.ErrExist if the path exists. Its
// fields:
//
//	Path, Why   string // "output PATH WHY" is the message
//	Replaceable bool   // Options.Replace would allow it
//	Exists      bool   // something is there
type OutputError = fileio.OutputError

// SpaceError is a disk without enough room, found before anything is written. Its fields:
//
//	Path       string
//	Need, Free int64 // bytes
type SpaceError = fileio.SpaceError

// inputsOf lists the paths that the merge reads.
func inputsOf(p *Plan) []string {
	paths := p.base.Paths()
	for _, a := range slices.Concat(p.removed.adapters, p.adapters) {
		paths = append(paths, a.Name) // a name need not be a path
	}
	for _, r := range p.removed.records {
		paths = append(paths, r.Name)
	}
	return paths
}

// outputNames lists the files of an output directory.
func outputNames(p *Plan) []string {
	names := slices.Clone(p.base.Side)
	for _, f := range p.files {
		names = append(names, f.in.Name)
	}
	return names
}

// isCheckpoint reports whether path holds a checkpoint rather than an adapter.
func isCheckpoint(path string) bool {
	c, err := checkpoint.Open(context.Background(), path)
	if err != nil {
		return false
	}
	defer c.Close()
	return !naming.AreOfAdapter(c.Names())
}

// isRecord reports whether path holds an undo record.
func isRecord(path string) bool {
	src, err := format.Open(path)
	if err != nil {
		return false
	}
	defer src.Close()
	return undo.Is(src)
}

// diskBytes returns the least disk space that the output takes. Holes take none.
func diskBytes(p *Plan) (n int64) {
	for _, f := range p.files {
		n += f.size() - f.in.HoleBytes()
	}
	for _, name := range p.base.Side {
		if in, err := p.base.Dir.Open(name); err == nil {
			n += in.Size - fileio.HoleBytes(in.ReaderAt)
			in.Close()
		}
	}
	return n
}

// disk creates the output at a path.
func (p *Plan) disk(out string) (*output.Disk, error) {
	o := output.DiskOptions{IsDir: p.base.IsDir, Replace: p.options.Replace}
	if p.base.IsDir {
		mode, err := p.base.Dir.Mode()
		if err != nil {
			return nil, err
		}
		o.Mode, o.Names = mode|0o700, outputNames(p)
	}
	return output.NewDisk(out, o)
}

// recordFile is an undo record being written.
type recordFile struct {
	file   output.File
	buffer *bufio.Writer
}

// newRecordFile creates a record that appears with the output. Its permissions are those common to
// all weight files, because it reveals the weights.
func newRecordFile(out *output.Disk, path string, base *checkpoint.Checkpoint) (*recordFile, error) {
	var info output.Info
	for i, f := range base.Files {
		if mode := f.Like().Mode; i == 0 {
			info.Mode = mode
		} else {
			info.Mode &= mode
		}
	}
	f, err := out.CreateAt(path, info)
	if err != nil {
		return nil, err
	}
	return &recordFile{f, bufio.NewWriterSize(io.NewOffsetWriter(f, 0), 1<<20)}, nil
}

// close flushes the record to disk, so that a full disk shows before the output appears.
func (f *recordFile) close() error {
	if f == nil {
		return nil
	}
	return errors.Join(f.buffer.Flush(), f.file.Close())
}

// recordWriter combines the record's destinations.
func recordWriter(p *Plan, f *recordFile) io.Writer {
	switch undo := p.options.Undo; {
	case f == nil:
		return undo
	case undo == nil:
		return f.buffer
	default:
		return io.MultiWriter(undo, f.buffer)
	}
}
