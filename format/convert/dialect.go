package convert

import (
	"context"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
)

// Options say how an adapter is opened; zero refuses everything that it cannot account for.
type Options struct {
	// Without are files of weights in the adapter's folder to leave out, by their paths within the
	// directory that is opened, with slashes.
	Without []string
	// AllowBeside opens the adapter though files of weights lie beside it that are no part of it.
	// WeightsBeside lists them.
	AllowBeside bool
	// MaxManifestBytes bounds the manifest of a .lora file; 0 means 16 MiB (format.ReaderOptions).
	MaxManifestBytes int64
}

// Dialect is a way of storing adapters. Its methods may be called from several goroutines at once.
type Dialect interface {
	// Name is the dialect's word in options and reports: "peft".
	Name() string
	// Recognise reports whether the input holds an adapter of the dialect, by its content. An input
	// that looks like the dialect and is damaged is the dialect's too: Open names the damage.
	Recognise(in *Input) bool
	// Open describes an input that Recognise has accepted. Only headers and configurations are
	// read. The source may go on to read from the input, which stays open until the source is
	// closed and is closed with it. Before anybody else sees the source, the set may add notes to
	// its manifest.
	Open(ctx context.Context, in *Input, o Options) (format.Source, error)
	// Create returns a Sink that writes one adapter to path. Nothing is written before Store. A
	// dialect that is only read returns an error of the kind format.ErrUnsupported. The Sink may
	// have a method Check(context.Context, format.Source) error; see the function Check.
	Create(path string, o CreateOptions) (format.Sink, error)
	// Writes reports whether a file with this ending, in lower case and with its dot, is written in
	// the dialect where the user names none; "" stands for a directory. See Dialects.For.
	Writes(ext string) bool
}

// OutputDialect is a dialect that can be written to any output. With it, writing to a path is short
// as well: output.NewDisk makes the output of one, which appears whole or not at all.
type OutputDialect interface {
	Dialect
	// CreateTo returns a Sink whose Store makes the files of an adapter in out and closes them.
	// Whoever calls Store commits the output, or aborts it.
	CreateTo(out output.Output, o CreateOptions) (format.Sink, error)
}

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
