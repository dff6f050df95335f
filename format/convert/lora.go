package convert

import (
	"bufio"
	"context"
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// LoRA is the container of spec/FORMAT.md.
func LoRA() Dialect { return loraDialect{} }

type loraDialect struct{}

// loraMagic is how a .lora file begins (spec/FORMAT.md, R3).
const loraMagic = "\x5a\x2a\x4d\x18"

func (loraDialect) Name() string           { return "lora" }
func (loraDialect) String() string         { return "lora" }
func (loraDialect) Writes(ext string) bool { return weightsExt[ext] == containerFile }

func (loraDialect) Recognise(in *Input) bool {
	return strings.HasPrefix(string(in.Start()), loraMagic) || in.file != nil && strings.HasSuffix(in.name, ".lora")
}

func (loraDialect) Open(_ context.Context, in *Input, o Options) (format.Source, error) {
	r, err := format.NewReader(in.file, in.file.Size, format.ReaderOptions{MaxManifestBytes: o.MaxManifestBytes})
	if err != nil {
		return nil, fault.InFile(err, in.Path())
	}
	return r, nil
}

func (loraDialect) Create(path string, o CreateOptions) (format.Sink, error) {
	return &loraSink{path, o}, nil
}

// loraSink writes a container.
type loraSink struct {
	path    string
	options CreateOptions
}

// Check leaves the room on the disk open: how far a container compresses is not known beforehand.
func (s *loraSink) Check(_ context.Context, src format.Source) error {
	if src != nil && src.Manifest() != nil {
		if err := s.writing().Check(src.Manifest()); err != nil {
			return err
		}
	}
	place := fileio.Place{Path: s.path, Replace: s.options.Replace, Inputs: s.options.Inputs, Known: isContainer, Kind: "a .lora file with an adapter"}
	return place.Check()
}

// isContainer reports whether what is at path is a container that holds an adapter, and not something else, such as an undo record.
func isContainer(path string) bool {
	r, err := format.OpenWith(path, format.ReaderOptions{MaxManifestBytes: math.MaxInt64})
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

func (s *loraSink) writing() format.WriterOptions {
	o := &s.options
	return format.WriterOptions{Workers: o.Workers, MaxManifestBytes: o.MaxManifestBytes, Tool: o.Tool, Version: o.Version}
}

func (s *loraSink) PeakBytes(src format.Source) int64 { return s.writing().PeakBytes(src.Manifest()) }

func (s *loraSink) Store(ctx context.Context, src format.Source) error {
	if err := s.Check(ctx, src); err != nil {
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
	_, err = format.Write(ctx, w, src, s.writing())
	if err := errors.Join(err, w.Flush(), fileio.Close(f)); err != nil {
		return err
	}
	if err := fileio.Unchanged(src); err != nil {
		return err
	}
	return stage.Commit(s.options.Replace)
}
