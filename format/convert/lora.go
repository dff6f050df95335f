package convert

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// LoRA returns the dialect of .lora files (spec/FORMAT.md).
func LoRA() Dialect { return loraDialect{} }

type loraDialect struct{}

func (loraDialect) Name() string           { return "lora" }
func (loraDialect) String() string         { return "lora" }
func (loraDialect) Writes(ext string) bool { return weightsExt[ext] == containerFile }

func (loraDialect) Recognise(in *Input) bool {
	return strings.HasPrefix(string(in.Start()), format.Magic) || in.file != nil && strings.HasSuffix(in.name, ".lora")
}

func (loraDialect) Open(_ context.Context, in *Input, o Options) (format.Source, error) {
	if err := o.refuseScale("a .lora file"); err != nil {
		return nil, err
	}
	r, err := format.NewReader(in.file, in.file.Size, format.ReaderOptions{MaxManifestBytes: o.MaxManifestBytes})
	if err != nil {
		return nil, fault.InFile(err, in.Path())
	}
	return r, nil
}

func (loraDialect) Create(path string, o CreateOptions) (format.Sink, error) {
	return &loraSink{path, o}, nil
}

func (loraDialect) CreateTo(out output.Output, o CreateOptions) (format.Sink, error) {
	return &loraFile{out, o}, nil
}

// loraSink writes a container to a path.
type loraSink struct {
	path    string
	options CreateOptions
}

// Check leaves out the free space: how far the tensors compress is not known beforehand.
func (s *loraSink) Check(_ context.Context, src format.Source) error {
	if src != nil && src.Manifest() != nil {
		if err := s.options.writing().Check(src.Manifest()); err != nil {
			return err
		}
	}
	place := fileio.Place{Path: s.path, Replace: s.options.Replace, Inputs: s.options.Inputs, Known: isContainer, Kind: "a .lora file with an adapter"}
	return place.Check()
}

// isContainer reports whether path is a container with an adapter that can be applied, rather than,
// say, an undo record.
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

func (o *CreateOptions) writing() format.WriterOptions {
	return format.WriterOptions{
		ChunkLog2: o.ChunkLog2, ByLayer: o.ByLayer, Workers: o.Workers, MaxManifestBytes: o.MaxManifestBytes, Tool: o.Tool, Version: o.Version,
	}
}

func (s *loraSink) PeakBytes(src format.Source) int64 {
	return s.options.writing().PeakBytes(src.Manifest())
}

func (s *loraSink) Store(ctx context.Context, src format.Source) error {
	if err := s.Check(ctx, src); err != nil {
		return err
	}
	disk, err := output.NewDisk(s.path, output.DiskOptions{Replace: s.options.Replace})
	if err != nil {
		return err
	}
	file := &loraFile{disk, s.options}
	return storeTo(ctx, disk, src, func() error { return file.Store(ctx, src) })
}

// loraFile writes a container to an output of one file.
type loraFile struct {
	out     output.Output
	options CreateOptions
}

func (s *loraFile) Store(ctx context.Context, src format.Source) error {
	info := output.Info{Mode: s.options.modeOf(peftWeights)}
	return writeFile(s.out, info, func(w io.Writer) error {
		b := bufio.NewWriterSize(w, 1<<20)
		_, err := format.Write(ctx, b, src, s.options.writing())
		return errors.Join(err, b.Flush())
	})
}
