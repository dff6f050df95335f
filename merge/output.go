package merge

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/undo"
)

// CheckOutput reports whether Run could write to out, and the undo record to its file: that nothing is there that may not be
// replaced, that none of them is one of the inputs or the other, that the directories around them can be written to, and that
// the disk has room.
func (p *Plan) CheckOutput(out string) error {
	place := fileio.Place{
		Path: out, IsDir: p.base.IsDir, Replace: p.options.Replace, Inputs: p.inputs(), Files: p.outputNames(),
		Known: isCheckpoint, Kind: "a checkpoint", Bytes: p.diskBytes(),
	}
	if err := place.Check(); err != nil {
		return err
	}
	if p.base.IsDir && strings.EqualFold(filepath.Ext(out), ".safetensors") {
		return &OutputError{Path: out, Why: "has the name of a file, and the base is a directory, which gives a directory"}
	}
	if p.options.UndoFile == "" {
		return nil
	}
	record := fileio.Place{
		Path: p.options.UndoFile, Replace: p.options.Replace, Inputs: p.inputs(), Apart: []string{out},
		Known: isRecord, Kind: "an undo record",
	}
	return record.Check()
}

// OutputError is an output path that cannot be used as the caller wants. One that is taken wraps fs.ErrExist. It has these fields:
//
//	Path, Why   string // "output PATH WHY" is the message
//	Replaceable bool   // Options.Replace would allow it
//	Exists      bool   // something is there
type OutputError = fileio.OutputError

// SpaceError is a disk that is too full, found out before anything is written. It has these fields:
//
//	Path       string
//	Need, Free int64 // bytes
type SpaceError = fileio.SpaceError

// inputs lists what the merge reads.
func (p *Plan) inputs() []string {
	paths := p.base.Paths()
	for _, a := range p.adapters {
		paths = append(paths, a.Name) // it need not be a path
	}
	for _, r := range p.records {
		paths = append(paths, r.Name)
	}
	return paths
}

// outputNames lists the files of an output that is a directory.
func (p *Plan) outputNames() []string {
	names := slices.Clone(p.base.Side)
	for _, f := range p.files {
		names = append(names, f.in.Name)
	}
	return names
}

// isCheckpoint reports whether what is at path is a checkpoint, and not an adapter.
func isCheckpoint(path string) bool {
	c, err := checkpoint.Open(context.Background(), path)
	if err != nil {
		return false
	}
	defer c.Close()
	return !slices.ContainsFunc(c.Names(), func(name string) bool { return strings.Contains(name, ".lora_") })
}

// isRecord reports whether what is at path is an undo record.
func isRecord(path string) bool {
	src, err := format.Open(path)
	if err != nil {
		return false
	}
	defer src.Close()
	return undo.Is(src)
}

func (p *Plan) sideBytes() (n int64) {
	for _, name := range p.base.Side {
		if in, err := p.base.Dir.Open(name); err == nil {
			n += in.Size
			in.Close()
		}
	}
	return n
}

// diskBytes is what the output takes on the disk at least: its holes take nothing.
func (p *Plan) diskBytes() (n int64) {
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

// begin makes the hidden output, and the file of the record.
func (r *run) begin(out string) (err error) {
	p := r.plan
	if r.stage, err = fileio.NewStage(out, p.base.IsDir); err != nil {
		return err
	}
	if p.base.IsDir {
		mode, err := p.base.Dir.Mode()
		if err != nil {
			return err
		}
		if err := errors.Join(r.stage.Narrow(mode), r.stage.Expect(p.outputNames())); err != nil {
			return err
		}
	}
	if p.options.UndoFile != "" {
		if r.undoFile, err = newRecordFile(p.options.UndoFile, p.base); err != nil {
			return err
		}
	}
	if p.options.wantsRecord() {
		r.recording, err = p.newRecording(out)
	}
	return err
}

// commit moves the output and its record to their places, both or none, when all is on the disk and the inputs are those
// that were planned with.
func (r *run) commit() error {
	p := r.plan
	stages := []*fileio.Stage{r.stage}
	if r.undoFile != nil {
		if err := r.undoFile.close(); err != nil {
			return err
		}
		stages = append(stages, r.undoFile.stage)
	}
	if err := p.unchanged(); err != nil {
		return err
	}
	return fileio.Commit(p.options.Replace, stages...)
}

// unchanged reports whether the base, the adapters and the records are what they were when they were opened.
func (p *Plan) unchanged() error {
	if err := p.base.Unchanged(); err != nil {
		return err
	}
	for _, a := range p.adapters {
		if err := fileio.Unchanged(a.Source); err != nil {
			return err
		}
	}
	for _, r := range p.records {
		if err := r.identity.Check(); err != nil {
			return err
		}
	}
	return nil
}

// drop removes what was not committed.
func (r *run) drop() {
	r.abandon()
	if r.recording != nil {
		r.recording.close()
	}
	if r.undoFile != nil {
		r.undoFile.abort()
	}
	if r.stage != nil {
		r.stage.Abort()
	}
}

// recordFile is an undo record in the making.
type recordFile struct {
	stage  *fileio.Stage
	file   *os.File
	buffer *bufio.Writer
}

// newRecordFile begins a record at path. Whoever may not read the weights may not read it either.
func newRecordFile(path string, base *checkpoint.Checkpoint) (*recordFile, error) {
	stage, err := fileio.NewStage(path, false)
	if err != nil {
		return nil, err
	}
	like := fileio.Like{}
	for i, f := range base.Files {
		if mode := f.Like().Mode; i == 0 {
			like.Mode = mode
		} else {
			like.Mode &= mode
		}
	}
	f, err := stage.CreateLike("", 0, like)
	if err != nil {
		stage.Abort()
		return nil, err
	}
	return &recordFile{stage, f, bufio.NewWriterSize(f, 1<<20)}, nil
}

// close makes the record durable, so that a disk without room for it is known before the output appears.
func (f *recordFile) close() error { return errors.Join(f.buffer.Flush(), fileio.Close(f.file)) }

func (f *recordFile) abort() {
	f.file.Close()
	f.stage.Abort()
}

// copySide copies a file beside the weights, or writes what it is to say.
func (r *run) copySide(name string) error {
	in, err := r.plan.base.Dir.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	like := fileio.LikeFile(in.ReaderAt)
	if text, ok := r.plan.side[name]; ok {
		out, err := r.stage.CreateLike(name, int64(len(text)), fileio.Like{Mode: like.Mode})
		if err != nil {
			return err
		}
		_, err = out.Write(text)
		return errors.Join(err, fileio.Close(out))
	}
	out, err := r.stage.CreateLike(name, in.Size, like)
	if err != nil {
		return err
	}
	return errors.Join(fileio.CopyRange(out, 0, in.ReaderAt, 0, in.Size), fileio.Close(out))
}
