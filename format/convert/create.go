package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// For returns the dialect for an output called path: the first in the set that writes files with
// this ending, or else the first that writes directories. An ending for weights that no dialect
// writes is an error.
func (ds Dialects) For(path string) (Dialect, error) {
	ext := strings.ToLower(filepath.Ext(path))
	for _, e := range []string{ext, ""} {
		for _, d := range ds {
			if d.Writes(e) {
				return d, nil
			}
		}
		if kindOf(path) != noWeights {
			break
		}
	}
	return nil, fault.New(fault.Unsupported, "no dialect is written to a %s file", ext).
		WithHint("name a directory, to write it as PEFT does, or a file ending in .lora")
}

// Create returns a Sink that writes one adapter to path, completely or not at all. It writes
// nothing before Store.
func Create(path string, d Dialect, o CreateOptions) (format.Sink, error) { return d.Create(path, o) }

// CreateTo is Create for any output, such as memory. Store commits the output once all files are
// written, and aborts it on failure. An output of a single file, such as a container, is called ""
// there; PEFT's files have the names that they have in a directory. A dialect of another package
// must be an [OutputDialect]; for any other the error has kind format.ErrUnsupported.
func CreateTo(out output.Output, d Dialect, o CreateOptions) (format.Sink, error) {
	w, ok := d.(OutputDialect)
	if isReadOnly(d) {
		_, err := d.Create("", o)
		return nil, err
	}
	if !ok {
		return nil, fault.New(fault.Unsupported, "dialect %s can only be written to a path", d.Name())
	}
	sink, err := w.CreateTo(out, o)
	if err != nil {
		return nil, err
	}
	return &outputSink{sink, out}, nil
}

// outputSink lets a Sink write the files of an output and then commits the output.
type outputSink struct {
	format.Sink
	out output.Output
}

func (s *outputSink) Store(ctx context.Context, src format.Source) error {
	return storeTo(ctx, s.out, src, func() error { return s.Sink.Store(ctx, src) })
}

// storeTo commits an output after write has made its files, provided the source has not changed.
func storeTo(ctx context.Context, out output.Output, src format.Source, write func() error) error {
	defer out.Abort()
	if err := write(); err != nil {
		return err
	}
	if err := errors.Join(ctx.Err(), fileio.Unchanged(src)); err != nil {
		return err
	}
	return out.Commit()
}

// writeFile makes a file of an output. On an error the file stays open; aborting the output closes
// it.
func writeFile(out output.Output, info output.Info, write func(io.Writer) error) error {
	f, err := out.Create(info)
	if err != nil {
		return err
	}
	if err := write(io.NewOffsetWriter(f, 0)); err != nil {
		return err
	}
	return f.Close()
}

// Check reports whether the Sink for path could store src, before any work is done; src is nil if
// it does not exist yet. The error is an *OutputError, a *SpaceError, an error of the system, or
// names the part of src that the dialect cannot hold. A Sink of another package takes part if it
// has a method Check(context.Context, format.Source) error.
func Check(ctx context.Context, path string, d Dialect, src format.Source, o CreateOptions) error {
	s, err := d.Create(path, o)
	if err != nil {
		return err
	}
	if s, ok := s.(interface {
		Check(context.Context, format.Source) error
	}); ok {
		return s.Check(ctx, src)
	}
	return nil
}

// PeakBytes estimates the memory that the Sink for path needs to store src, in bytes, not counting
// src itself. A Sink of another package takes part if it has a method PeakBytes(format.Source)
// int64. 0 means unknown.
func PeakBytes(path string, d Dialect, src format.Source, o CreateOptions) (int64, error) {
	s, err := d.Create(path, o)
	if err != nil {
		return 0, err
	}
	if s, ok := s.(interface{ PeakBytes(format.Source) int64 }); ok {
		return s.PeakBytes(src), nil
	}
	return 0, nil
}

// OutputError says why an output path cannot be used. If the path exists, the error wraps
// fs.ErrExist. Its fields:
//
//	Path, Why   string // "output PATH WHY" is the message
//	Replaceable bool   // CreateOptions.Replace would allow it
//	Exists      bool   // the path exists
type OutputError = fileio.OutputError

// SpaceError says that a disk is too full; it is found before anything is written. Its fields:
//
//	Path       string
//	Need, Free int64 // bytes
type SpaceError = fileio.SpaceError

// modeOf returns the permissions that the output called name inherits: those of the inputs' file of
// that name, or else those that all their weights share. 0 means the default.
func (o *CreateOptions) modeOf(name string) (all fs.FileMode) {
	for _, input := range o.Inputs {
		mode, ok := modeOf(input, name)
		switch {
		case !ok:
		case all == 0:
			all = mode
		default:
			all &= mode
		}
	}
	return all
}

// dirMode returns the permissions that an output directory inherits from the inputs that are
// directories, 0 if none is.
func (o *CreateOptions) dirMode() (all fs.FileMode) {
	for _, input := range o.Inputs {
		dir, file, err := fileio.LocateOnDisk(input)
		if err != nil || file != "" {
			continue
		}
		mode, err := dir.Mode()
		mode = mode.Perm() | 0o700 // the owner keeps full access
		switch {
		case err != nil:
		case all == 0:
			all = mode
		default:
			all &= mode
		}
	}
	return all
}

// modeOf returns the permissions of the file called name in or beside an input. Without such a file
// it returns those of the input, or those that all weights in a directory share.
func modeOf(input, name string) (mode fs.FileMode, ok bool) {
	dir, file, err := fileio.LocateOnDisk(input)
	if err != nil {
		return 0, false
	}
	if file != "" && name == peftWeights {
		name = file // the input is the weights, whatever its name
	}
	for _, n := range []string{name, file} {
		if there, err := dir.Stat(n); err == nil && there.Mode().IsRegular() {
			return there.Mode().Perm(), true
		}
	}
	if file != "" {
		return 0, false
	}
	entries, _ := dir.List(".")
	mode = 0o777
	for _, e := range entries {
		if file, err := dir.Stat(e.Name()); err == nil && kindOf(e.Name()) != noWeights {
			mode, ok = mode&file.Mode().Perm(), true
		}
	}
	return mode, ok
}

func hasAttachment(src format.Source, name string) bool {
	i, _ := findAttachment(src.Manifest(), name)
	return i >= 0
}

// findAttachment returns the index of the attachment called name, or -1. An attachment that is too
// large is an error.
func findAttachment(m *format.Manifest, name string) (int, error) {
	i := slices.IndexFunc(m.Attachments, func(a format.Attachment) bool { return a.Name == name })
	if i >= 0 && m.Attachments[i].NBytes > maxAttachmentBytes {
		e := fault.New(fault.Limit, "attachment %q has %d bytes, the limit is %d",
			name, m.Attachments[i].NBytes, maxAttachmentBytes)
		e.Rule = "R67"
		return i, e
	}
	return i, nil
}

// attachment reads the attachment called name; nil if there is none. It checks the digest that the
// source states for it.
func attachment(src format.Source, name string) ([]byte, error) {
	m := src.Manifest()
	i, err := findAttachment(m, name)
	if err != nil || i < 0 {
		return nil, err
	}
	a := &m.Attachments[i]
	b := make([]byte, a.NBytes)
	if err := src.ReadBlobAt(b, len(m.Tensors)+i, 0); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	isOfItself := path.Base(name) != format.SourceHeader && a.SHA256 != ""
	if isOfItself && hex.EncodeToString(sum[:]) != a.SHA256 {
		return nil, broken("R55", "attachment %q has SHA-256 %x, the manifest says %s", name, sum, a.SHA256)
	}
	return b, nil
}
