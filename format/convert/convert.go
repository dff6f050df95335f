// Package convert reads and writes adapters in the dialects of other tools. Whatever the dialect, past Open an adapter is
// a format.Source: layers with a module name, a kind, factors and a scale; what has no such meaning is listed, never
// dropped. A dialect is one file of this package; names are decided by tables.
package convert

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// Options say how an adapter is opened; zero refuses what it cannot account for.
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

// Open is OpenWith without options.
func Open(path string) (format.Source, error) { return OpenWith(path, Options{}) }

// OpenWith opens the adapter at path, a file or a directory, and recognises its dialect by what it
// holds. Only headers and configurations are read. The caller closes it. Errors wrap a kind of package
// format, or are I/O errors. A directory that holds weights that are no part of the adapter is an
// error, unless options allow it.
func OpenWith(path string, o Options) (format.Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return openDir(path, o)
	}
	return openFile(path, o)
}

// WeightsBeside lists the files of weights that lie in the directory of an opened adapter, are no part
// of it, and were not left out by Options.Without: paths within the directory, with slashes.
func WeightsBeside(src format.Source) []string {
	if f, ok := src.(*tensorFile); ok {
		return f.beside
	}
	return nil
}

// OpenDigested is Open for a source that will be converted: it reads a file that a container is to restore once, to record its
// digest.
func OpenDigested(ctx context.Context, path string, o Options) (format.Source, error) {
	src, err := OpenWith(path, o)
	if err != nil {
		return nil, err
	}
	if f, ok := src.(*tensorFile); ok {
		if err := f.digest(ctx); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return src, nil
}

// loraMagic is how a .lora file begins (spec/FORMAT.md, R3).
const loraMagic = "\x5a\x2a\x4d\x18"

// IsLoRA reports whether the file at path begins as a .lora file does.
func IsLoRA(path string) bool { return string(start(path, len(loraMagic))) == loraMagic }

// start returns the first bytes of a file, at most n.
func start(path string, n int) []byte {
	f, _, err := fileio.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	p := make([]byte, n)
	n, _ = io.ReadFull(f, p)
	return p[:n]
}

// openFile opens one file: a container, or a PEFT adapter, whose configuration lies beside it.
func openFile(path string, o Options) (format.Source, error) {
	if IsLoRA(path) || strings.HasSuffix(path, ".lora") {
		r, err := format.OpenWith(path, format.ReaderOptions{MaxManifestBytes: o.MaxManifestBytes})
		if err != nil {
			return nil, fault.InFile(err, path)
		}
		return r, nil
	}
	base := strings.ToLower(filepath.Base(path))
	if strings.HasSuffix(base, ".json") {
		return nil, fault.New(fault.Unsupported, "this is a configuration, not the weights").In(path).
			WithHint("give the directory %s", filepath.Dir(path))
	}
	f, err := openPEFT(path)
	if err != nil {
		return nil, err
	}
	if base == peftWeights || base == peftPickle {
		if err := f.lookBeside(filepath.Dir(path), filepath.Base(path), Options{AllowBeside: true}); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if len(f.beside) > 0 {
		f.note("this file is opened alone; beside it lie weights that are no part of it: %s", fault.List(f.beside, 5))
	}
	f.beside = nil
	return f, nil
}

// WithBase returns a source of one adapter with another record of the base that it was made for.
func WithBase(src format.Source, base format.Base) format.Source {
	m := *src.Manifest()
	m.Adapters = slices.Clone(m.Adapters)
	m.Adapters[0].Base = base
	return &described{src, &m}
}

// described is a source with another description.
type described struct {
	format.Source
	manifest *format.Manifest
}

func (d *described) Manifest() *format.Manifest { return d.manifest }

func (d *described) Unchanged() error { return fileio.Unchanged(d.Source) }
