package convert

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// Dialect is a way of storing adapters that can be written.
type Dialect string

// The dialects that Create knows.
const (
	LoRA Dialect = "lora" // the container of spec/FORMAT.md
	PEFT Dialect = "peft" // a directory as huggingface/peft saves it, or its weights file with the rest beside it
)

// CreateOptions say how an adapter is written. The zero value is ready.
type CreateOptions struct {
	Replace bool     // replace an output of the same kind that is there
	Inputs  []string // paths that the source was made from, none of which may be the output
	Workers int      // goroutines that compress; 0 is one per processor
	// MaxManifestBytes bounds the manifest of a .lora file; 0 means 16 MiB (format.WriterOptions).
	MaxManifestBytes int64
	Tool             string // name of the program, for the provenance; "" keeps the source's
	Version          string
}

// DialectFor is the dialect that the name of an output asks for: a name that ends in .lora is a container, any other a
// directory for PEFT, or a weights file if it ends in .safetensors.
func DialectFor(path string) (Dialect, error) {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".lora":
		return LoRA, nil
	case ".bin", ".gguf", ".npz", ".pt":
		return "", fault.New(fault.Unsupported, "no dialect is written to a %s file", ext).
			WithHint("name a directory, which is written as PEFT saves it, or a file that ends in .lora")
	}
	return PEFT, nil
}

// Create returns a Sink that writes one adapter to path, whole or not at all. Nothing is written before Store.
func Create(path string, d Dialect, o CreateOptions) (format.Sink, error) {
	s, err := create(path, d, o)
	return s, err
}

// Check reports whether the Sink for path could store src, before work is done for it; src is nil where it is not made yet. The error
// is an *OutputError, a *SpaceError, one of the system, or says what the dialect does not hold.
func Check(ctx context.Context, path string, d Dialect, src format.Source, o CreateOptions) error {
	s, err := create(path, d, o)
	if err != nil {
		return err
	}
	return s.check(ctx, src)
}

// OutputError is an output path that cannot be used as the caller wants. One that is taken wraps fs.ErrExist.
type OutputError = fileio.OutputError

// SpaceError is a disk that is too full, found out before anything is written.
type SpaceError = fileio.SpaceError

// sink is a Sink that can say beforehand whether it could store a source.
type sink interface {
	format.Sink
	check(ctx context.Context, src format.Source) error
}

func create(path string, d Dialect, o CreateOptions) (sink, error) {
	switch d {
	case LoRA:
		return &loraSink{path, o}, nil
	case PEFT:
		return &peftSink{path, o}, nil
	}
	return nil, fault.New(fault.Unsupported, "the dialect %q is not written", string(d)).WithHint("lora and peft are")
}

// loraSink writes a container.
type loraSink struct {
	path    string
	options CreateOptions
}

// check leaves the room on the disk open: how far a container compresses is not known beforehand.
func (s *loraSink) check(context.Context, format.Source) error {
	place := fileio.Place{Path: s.path, Replace: s.options.Replace, Inputs: s.options.Inputs, Known: isContainer, Kind: "a .lora file with an adapter"}
	return place.Check()
}

// isContainer reports whether what is at path is a container that holds an adapter, and not something else, such as an undo record.
func isContainer(path string) bool {
	r, err := format.Open(path)
	if err != nil {
		return false
	}
	defer r.Close()
	for _, a := range r.Manifest().Adapters {
		if len(a.Layers) > 0 || slices.ContainsFunc(a.Beside, func(b format.Beside) bool { return b.Action != format.Opaque }) {
			return true
		}
	}
	return false
}

func (s *loraSink) Store(ctx context.Context, src format.Source) error {
	if err := s.check(ctx, src); err != nil {
		return err
	}
	stage, err := fileio.NewStage(s.path, false)
	if err != nil {
		return err
	}
	defer stage.Abort()
	f, err := stage.CreateLike("", 0, s.options.like(peftWeights))
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = format.Write(ctx, w, src, format.WriterOptions{Workers: s.options.Workers, MaxManifestBytes: s.options.MaxManifestBytes, Tool: s.options.Tool, Version: s.options.Version})
	if err := errors.Join(err, w.Flush(), fileio.Close(f)); err != nil {
		return err
	}
	if err := fileio.Unchanged(src); err != nil {
		return err
	}
	return stage.Commit(s.options.Replace)
}

// like is what the output called name takes over from the inputs: the permissions of the file of that name among them, or else
// those that all weights have.
func (o *CreateOptions) like(name string) fileio.Like {
	var like fileio.Like
	for _, input := range o.Inputs {
		mode, ok := modeOf(input, name)
		switch {
		case !ok:
		case like.Mode == 0:
			like.Mode = mode
		default:
			like.Mode &= mode
		}
	}
	return like
}

// modeOf is the permissions of the file called name in, or beside, an input, else of the input, else of all weights in it.
func modeOf(input, name string) (mode fs.FileMode, ok bool) {
	info, err := os.Stat(input)
	if err != nil {
		return 0, false
	}
	if !info.IsDir() {
		if beside, err := os.Stat(siblingOf(input, name)); err == nil && name != peftWeights {
			info = beside
		}
		return info.Mode().Perm(), true
	}
	if named, err := os.Stat(filepath.Join(input, name)); err == nil && named.Mode().IsRegular() {
		return named.Mode().Perm(), true
	}
	entries, _ := os.ReadDir(input)
	mode = 0o777
	for _, e := range entries {
		if file, err := os.Stat(filepath.Join(input, e.Name())); err == nil && isWeights(e.Name()) {
			mode, ok = mode&file.Mode().Perm(), true
		}
	}
	return mode, ok
}

// isWeights reports whether a name is one that files with weights have.
func isWeights(name string) bool {
	return slices.Contains([]string{".safetensors", ".bin", ".pt", ".pth", ".lora"}, filepath.Ext(name))
}

func hasAttachment(src format.Source, name string) bool {
	return slices.ContainsFunc(src.Manifest().Attachments, func(a format.Attachment) bool { return a.Name == name })
}

// attachment reads the attachment of a source that has the given name; nil if there is none. A digest that the source states
// for the attachment itself is checked.
func attachment(src format.Source, name string) ([]byte, *format.Attachment, error) {
	m := src.Manifest()
	for i := range m.Attachments {
		a := &m.Attachments[i]
		if a.Name != name {
			continue
		}
		if a.NBytes > maxAttachmentBytes {
			e := fault.New(fault.Limit, "the attachment %q has %d bytes, at most %d are read", name, a.NBytes, maxAttachmentBytes)
			e.Rule = "R67"
			return nil, nil, e
		}
		b := make([]byte, a.NBytes)
		if err := src.ReadBlobAt(b, len(m.Tensors)+i, 0); err != nil {
			return nil, nil, err
		}
		if sum := sha256.Sum256(b); path.Base(name) != format.SourceHeader && a.SHA256 != "" && hex.EncodeToString(sum[:]) != a.SHA256 {
			e := fault.New(fault.Corrupt, "the attachment %q has the SHA-256 %x, the manifest says %s", name, sum, a.SHA256)
			e.Rule = "R55"
			return nil, nil, e
		}
		return b, a, nil
	}
	return nil, nil, nil
}

// maxAttachmentBytes bounds an attachment that is held in memory: a header of safetensors is the largest, R67.
const maxAttachmentBytes = 8 + 100_000_000
