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
	"github.com/loratool/loratool/internal/pickle"
	"github.com/loratool/loratool/internal/safetensors"
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
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names, named := namesOf(entries), namedAdapters(dir, entries)
	if weights := weightsOf(dir, names); weights != "" {
		return openBeside(filepath.Join(dir, weights), "beside the adapter the directory holds those of the sub-directories %s, which are not used", named)
	}
	isModel := slices.Contains(names, modelConfig)
	if len(named) == 1 && !isModel {
		return openBeside(filepath.Join(dir, named[0], weightsOf(filepath.Join(dir, named[0]), nil)), "the adapter is that of the sub-directory %s", named)
	}
	e := fault.New(fault.Unsupported, "the directory holds no %s and no %s", peftWeights, peftPickle).In(dir)
	switch {
	case len(named) > 0:
		e.Msg += "; there are adapters in the sub-directories " + fault.List(named, 5)
		e.WithHint("give one of them: %s", filepath.Join(dir, named[0]))
	case isModel:
		e.WithHint("this looks like a model").Misplaced = true
	}
	return nil, e
}

// openBeside opens a file of weights and, where there are adapters in sub-directories, notes it.
func openBeside(path, note string, named []string) (format.Source, error) {
	f, err := openPEFT(path)
	if err != nil {
		return nil, err
	}
	if len(named) > 0 {
		f.note(note, fault.List(named, 5))
	}
	return f, nil
}

// modelConfig is the configuration of a model, which no adapter has beside it.
const modelConfig = "config.json"

// weightsOf is the file of weights of an adapter's directory: under a name of PEFT's, or the only one that it can be. It is ""
// where there is none. names are those of the directory, nil to look for PEFT's alone.
func weightsOf(dir string, names []string) string {
	for _, name := range []string{peftWeights, peftPickle} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && !info.IsDir() {
			return name
		}
	}
	if slices.Contains(names, modelConfig) {
		return ""
	}
	for _, kind := range [][]string{{".safetensors"}, {".bin", ".pt", ".pth"}} { // trainers leave pickles of their own beside the weights
		var all []string
		for _, name := range names {
			if slices.Contains(kind, filepath.Ext(name)) {
				all = append(all, name)
			}
		}
		if len(all) == 1 {
			return all[0]
		}
	}
	return ""
}

// namedAdapters are the sub-directories in which PEFT saves adapters that are not called default.
func namedAdapters(dir string, entries []os.DirEntry) []string {
	var found []string
	for _, e := range entries {
		if !e.Type().IsRegular() && weightsOf(filepath.Join(dir, e.Name()), nil) != "" { // a link may be one of a directory
			found = append(found, e.Name())
		}
	}
	return found
}

func namesOf(entries []os.DirEntry) []string {
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// IsAdapter reports whether the path is that of an adapter, by what lies there: a container, a configuration of PEFT with the
// weights, adapters in sub-directories, or a pickle, which no checkpoint that is read here is.
func IsAdapter(path string) bool {
	dir := path
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		if IsLoRA(path) || isPickle(path) {
			return true
		}
		dir = filepath.Dir(path)
	}
	if _, err := os.Stat(filepath.Join(dir, format.PEFTConfig)); err == nil {
		return true
	}
	if dir != path {
		return false
	}
	entries, err := os.ReadDir(dir)
	return err == nil && len(namedAdapters(dir, entries)) > 0 && !slices.Contains(namesOf(entries), modelConfig)
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
func IsLoRA(path string) bool { return string(start(path, len(loraMagic))) == loraMagic }

// isPickle reports whether the file at path begins as one of torch.save does.
func isPickle(path string) bool {
	p := start(path, 16)
	return pickle.IsPickle(p) && !safetensors.IsHeader(p)
}

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
	return openBeside(path, "", nil)
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
