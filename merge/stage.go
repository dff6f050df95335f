package merge

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/undo"
)

// CheckOutput reports whether Run could write to out, and the undo record to its file: that nothing is
// there that may not be replaced, that none of them is one of the inputs or the other, that the
// directories around them can be written to, and that the disk has room.
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
		return &OutputError{Path: out, Why: "has the name of a file, and the base is a directory, which gives a directory"}
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
func inputsOf(p *Plan) []string {
	paths := p.base.Paths()
	for _, a := range slices.Concat(p.removed.adapters, p.adapters) {
		paths = append(paths, a.Name) // it need not be a path
	}
	for _, r := range p.removed.records {
		paths = append(paths, r.Name)
	}
	return paths
}

// outputNames lists the files of an output that is a directory.
func outputNames(p *Plan) []string {
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

// diskBytes is what the output takes on the disk at least: its holes take nothing.
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

// staged is an output of the file system: hidden beside its place until Commit, together with the undo
// record where one goes to a file.
type staged struct {
	path    string
	stage   *fileio.Stage
	record  *recordFile // nil where no file gets it
	replace bool

	lock sync.Mutex
	open map[*stagedFile]bool
}

// stage begins the output at a path.
func (p *Plan) stage(out string) (*staged, error) {
	out = filepath.Clean(out)
	stage, err := fileio.NewStage(out, p.base.IsDir)
	if err != nil {
		return nil, err
	}
	s := &staged{path: out, stage: stage, replace: p.options.Replace, open: make(map[*stagedFile]bool)}
	if p.base.IsDir {
		var mode fs.FileMode
		if mode, err = p.base.Dir.Mode(); err == nil {
			err = errors.Join(stage.Narrow(mode), stage.Expect(outputNames(p)))
		}
	}
	if err == nil && p.options.UndoFile != "" {
		s.record, err = newRecordFile(p.options.UndoFile, p.base)
	}
	if err != nil {
		s.Abort()
		return nil, err
	}
	return s, nil
}

// Create begins a file of the stage.
func (s *staged) Create(info OutputInfo) (OutputFile, error) {
	f, err := s.stage.CreateLike(info.Name, info.Size, fileio.Like{Mode: info.Mode, Sparse: info.Sparse})
	if err != nil {
		return nil, err
	}
	out := &stagedFile{stage: s, file: f, left: info.Size}
	s.lock.Lock()
	defer s.lock.Unlock()
	s.open[out] = true
	return out, nil
}

// Commit moves the output and its record to their places, both or none.
func (s *staged) Commit() error {
	stages := []*fileio.Stage{s.stage}
	if s.record != nil {
		if err := s.record.close(); err != nil {
			return err
		}
		stages = append(stages, s.record.stage)
	}
	return fileio.Commit(s.replace, stages...)
}

// Abort removes what was not committed, without waiting for the disk.
func (s *staged) Abort() {
	for f := range s.open {
		f.file.Close()
	}
	if s.record != nil {
		s.record.abort()
	}
	s.stage.Abort()
}

// spool is a file beside the output, so that it is on a disk with room.
func (s *staged) spool() (undo.Spool, func(), error) {
	stage, err := fileio.NewStage(s.path+".residuals", false)
	if err != nil {
		return nil, nil, err
	}
	f, err := stage.Create("", 0)
	if err != nil {
		stage.Abort()
		return nil, nil, err
	}
	return f, func() { f.Close(); stage.Abort() }, nil
}

// stagedFile is a file of a stage.
type stagedFile struct {
	stage   *staged
	file    *fileio.File
	turn    sync.Mutex // held by whoever writes: the system lets one write to a file at a time, and waiting for it burns time
	written int64      // since the last hint that writing to the disk may begin; under turn
	left    int64      // until the file is complete; under turn
}

// hintBytes is how much is written to a file before the system is told that it may begin to move it to
// the disk.
const hintBytes = 16 << 20

// wrote counts n written bytes. The caller holds the turn.
func (f *stagedFile) wrote(n int64) {
	f.left -= n
	if f.written += n; f.written >= hintBytes || f.left == 0 {
		f.written = 0
		fileio.StartWriteback(f.file)
	}
}

func (f *stagedFile) WriteAt(p []byte, off int64) (int, error) {
	f.turn.Lock()
	defer f.turn.Unlock()
	n, err := f.file.WriteAt(p, off)
	f.wrote(int64(n))
	return n, err
}

func (f *stagedFile) CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	err := fileio.CopyRange(f.file, off, src, srcOff, n)
	f.wrote(n)
	return err
}

// Close makes the file durable.
func (f *stagedFile) Close() error {
	f.stage.lock.Lock()
	delete(f.stage.open, f)
	f.stage.lock.Unlock()
	return fileio.Close(f.file)
}

// recordFile is an undo record in the making.
type recordFile struct {
	stage  *fileio.Stage
	file   *fileio.File
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

// close makes the record durable, so that a disk without room for it is known before the output
// appears.
func (f *recordFile) close() error { return errors.Join(f.buffer.Flush(), fileio.Close(f.file)) }

func (f *recordFile) abort() {
	f.file.Close()
	f.stage.Abort()
}

// recordWriter is where the undo record goes.
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
