// Package convert reads and writes adapters in the dialects of other tools. Whatever the dialect, past Open an adapter is
// a format.Source: layers with a module name, a kind, factors and a scale; what has no such meaning is listed, never
// dropped. A dialect is one file of this package; names are decided by tables.
package convert

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// Open opens the adapter at path, a file or a directory, and recognises its dialect by what it holds. Only headers and
// configurations are read. The caller closes it. Errors wrap a kind of package format, or are I/O errors.
func Open(path string) (format.Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return openDir(path)
	}
	return openFile(path)
}

// openDir opens a directory as PEFT saves it. Where it holds safetensors and a pickle, the first is opened, as PEFT does.
func openDir(dir string) (format.Source, error) {
	for _, name := range []string{peftWeights, peftPickle} {
		if weights := filepath.Join(dir, name); exists(weights) {
			return openPEFT(weights)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names, weights []string
	for _, e := range entries {
		names = append(names, e.Name())
		if slices.Contains([]string{".safetensors", ".bin", ".pt", ".pth"}, filepath.Ext(e.Name())) {
			weights = append(weights, e.Name())
		}
	}
	isModel := slices.Contains(names, "config.json")
	if len(weights) == 1 && !isModel {
		return openPEFT(filepath.Join(dir, weights[0]))
	}
	e := fault.New(fault.Unsupported, "the directory holds no %s and no %s", peftWeights, peftPickle).In(dir)
	for _, name := range names {
		if exists(filepath.Join(dir, name, peftWeights)) || exists(filepath.Join(dir, name, peftPickle)) {
			e.WithHint("the adapter is in the sub-directory %s", name)
		}
	}
	if isModel && e.Hint == "" {
		e.WithHint("this looks like a model; the order is: BASE ADAPTER")
	}
	return nil, e
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// OpenDigested is Open for a source that will be converted: it reads a file that a container is to restore once, to record its
// digest.
func OpenDigested(ctx context.Context, path string) (format.Source, error) {
	src, err := Open(path)
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
func IsLoRA(path string) bool {
	f, _, err := fileio.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	start := make([]byte, len(loraMagic))
	_, err = io.ReadFull(f, start)
	return err == nil && string(start) == loraMagic
}

// openFile opens one file: a container, or a PEFT adapter, whose configuration lies beside it.
func openFile(path string) (format.Source, error) {
	if IsLoRA(path) || strings.HasSuffix(path, ".lora") {
		r, err := format.Open(path)
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
	return openPEFT(path)
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

// readBeside reads a file next to path, and returns nil where there is none.
func readBeside(path, name string, limit int64) ([]byte, error) {
	file := filepath.Join(filepath.Dir(path), name)
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return fileio.ReadFile(file, limit)
}
