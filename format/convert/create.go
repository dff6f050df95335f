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

// For is the dialect that the name of an output asks for: the first of the set that writes files
// with its ending, else the first that writes directories. The ending of a file of weights that
// none of them writes is an error.
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
		WithHint("name a directory, which is written as PEFT saves it, or a file that ends in .lora")
}

// Create returns a Sink that writes one adapter to path, whole or not at all. Nothing is written
// before Store.
func Create(path string, d Dialect, o CreateOptions) (format.Sink, error) { return d.Create(path, o) }

// CreateTo is Create for an output that need not be a path, such as memory. Store commits the
// output when all files are written, and aborts it when it fails. An output of one file, such as a
// container, has the name "" there; PEFT's files have the names that they have in a directory. A
// dialect of another package is asked if it is an [OutputDialect]; others return an error of the
// kind format.ErrUnsupported.
func CreateTo(out output.Output, d Dialect, o CreateOptions) (format.Sink, error) {
	w, ok := d.(OutputDialect)
	if !ok {
		return nil, fault.New(fault.Unsupported, "the dialect %s is only written to a path", d.Name())
	}
	sink, err := w.CreateTo(out, o)
	if err != nil {
		return nil, err
	}
	return &outputSink{sink, out}, nil
}

// outputSink commits the output that another Sink writes the files of.
type outputSink struct {
	format.Sink
	out output.Output
}

func (s *outputSink) Store(ctx context.Context, src format.Source) error {
	return storeTo(ctx, s.out, src, func() error { return s.Sink.Store(ctx, src) })
}

// storeTo commits an output when write has made its files and the source has not changed.
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

// writeFile makes a file of an output. Where it fails, whoever aborts the output ends the file.
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

// Check reports whether the Sink for path could store src, before work is done for it; src is nil
// where it is not made yet. The error is an *OutputError, a *SpaceError, one of the system, or says
// what the dialect does not hold. The Sink of a dialect of another package is asked if it has a
// method Check(context.Context, format.Source) error.
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

// PeakBytes estimates the memory that the Sink for path takes to store src, beside src. The Sink of
// a dialect of another package is asked if it has a method PeakBytes(format.Source) int64; 0 is
// unknown.
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

// OutputError is an output path that cannot be used as the caller wants. One that is taken wraps
// fs.ErrExist. It has these fields:
//
//	Path, Why   string // "output PATH WHY" is the message
//	Replaceable bool   // CreateOptions.Replace would allow it
//	Exists      bool   // something is there
type OutputError = fileio.OutputError

// SpaceError is a disk that is too full, found out before anything is written. It has these fields:
//
//	Path       string
//	Need, Free int64 // bytes
type SpaceError = fileio.SpaceError

// modeOf is the permissions that the output called name takes over from the inputs: those of the
// file of that name among them, or else those that all weights have. 0 says nothing.
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

// dirMode is the permissions that a directory takes over from the inputs that are directories, 0
// where none is.
func (o *CreateOptions) dirMode() (all fs.FileMode) {
	for _, input := range o.Inputs {
		dir, file, err := fileio.LocateOnDisk(input)
		if err != nil || file != "" {
			continue
		}
		mode, err := dir.Mode()
		mode = mode.Perm() | 0o700 // its owner keeps all
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

// modeOf is the permissions of the file called name in, or beside, an input, else of the input,
// else of all weights in it.
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

// findAttachment returns the number of the attachment with a name, -1 where there is none. One that
// is too large is an error.
func findAttachment(m *format.Manifest, name string) (int, error) {
	i := slices.IndexFunc(m.Attachments, func(a format.Attachment) bool { return a.Name == name })
	if i >= 0 && m.Attachments[i].NBytes > maxAttachmentBytes {
		e := fault.New(fault.Limit, "the attachment %q has %d bytes, at most %d are read",
			name, m.Attachments[i].NBytes, maxAttachmentBytes)
		e.Rule = "R67"
		return i, e
	}
	return i, nil
}

// attachment reads the attachment of a source that has the given name; nil if there is none. A
// digest that the source states for the attachment itself is checked.
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
		return nil, broken("R55", "the attachment %q has the SHA-256 %x, the manifest says %s", name, sum, a.SHA256)
	}
	return b, nil
}
