// Package convert reads and writes adapters in the dialects of other tools. Whatever the dialect,
// past Open an adapter is a format.Source: layers with a module name, a kind, factors and a scale;
// what has no such meaning is listed, never dropped.
//
// A dialect is one file of this package and one row of [Default]. A program adds its own with
// [Dialects.With]: a set of dialects is a value, and nothing is registered.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// Dialects is a set of dialects. The first that recognises an input opens it.
type Dialects []Dialect

// With returns a set that asks the given dialects first, and then those of ds.
func (ds Dialects) With(more ...Dialect) Dialects { return slices.Concat(more, ds) }

// Named returns the dialect with a name, nil where the set has none.
func (ds Dialects) Named(name string) Dialect {
	for _, d := range ds {
		if d.Name() == name {
			return d
		}
	}
	return nil
}

// Names are the names of the dialects, in their order.
func (ds Dialects) Names() []string {
	names := make([]string, len(ds))
	for i, d := range ds {
		names[i] = d.Name()
	}
	return names
}

// Open opens the adapter at path, a file or a directory, in the dialect of its content. Only
// headers and configurations are read. The caller closes it. Errors wrap a kind of package format,
// or are I/O errors. A directory that holds weights that are no part of the adapter is an error,
// unless options allow it.
func (ds Dialects) Open(ctx context.Context, path string, o Options) (format.Source, error) {
	in, err := lookAt(ctx, path)
	if err != nil {
		return nil, err
	}
	return ds.open(ctx, in, o)
}

// OpenFS is Open for a file or a directory of an fs.FS. A file that is no io.ReaderAt is read into
// memory.
func (ds Dialects) OpenFS(ctx context.Context, files fs.FS, name string, o Options) (format.Source, error) {
	in, err := lookIn(ctx, files, name)
	if err != nil {
		return nil, err
	}
	return ds.open(ctx, in, o)
}

// OpenReader is Open for a file of the given size that has nothing beside it, such as a .lora file
// in memory. Closing the source leaves r as it is.
func (ds Dialects) OpenReader(ctx context.Context, r io.ReaderAt, size int64, o Options) (format.Source, error) {
	return ds.open(ctx, lookAtReader(ctx, r, size), o)
}

func (ds Dialects) open(ctx context.Context, in *Input, o Options) (format.Source, error) {
	src, err := ds.openInput(ctx, in, o)
	if err != nil {
		return nil, errors.Join(err, in.close())
	}
	return src, nil
}

func (ds Dialects) openInput(ctx context.Context, in *Input, o Options) (*opened, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := ds.recognise(in)
	if d == nil {
		return nil, in.refuse()
	}
	src, err := d.Open(ctx, in, o)
	if err != nil {
		return nil, err
	}
	s := &opened{Source: src, in: in}
	if err := s.account(o); err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return s, nil
}

func (ds Dialects) recognise(in *Input) Dialect {
	for _, d := range ds {
		if d.Recognise(in) {
			return d
		}
	}
	return nil
}

// IsAdapter reports whether the path is that of an adapter, in a dialect of the set or in one that
// is only known by name. Open opens every path that it reports, or gives the best reason against
// it. It is false where the context ends.
func (ds Dialects) IsAdapter(ctx context.Context, path string) bool {
	in, err := lookAt(ctx, path)
	if err != nil {
		return false
	}
	defer in.close()
	return !in.isModel() && ds.recognise(in) != nil || in.hasAdapter()
}

// OpenDigested is Open for a source that will be converted; see the function.
func (ds Dialects) OpenDigested(ctx context.Context, path string, o Options) (format.Source, error) {
	src, err := ds.Open(ctx, path, o)
	if err != nil {
		return nil, err
	}
	if f, ok := src.(*opened).Source.(*tensorFile); ok {
		if err := f.digest(ctx); err != nil {
			return nil, errors.Join(err, src.Close())
		}
	}
	return src, nil
}

// opened is a source with the input that it reads from.
type opened struct {
	format.Source
	in     *Input
	beside []string
}

func (s *opened) Unchanged() error {
	return errors.Join(fileio.Unchanged(s.Source), s.in.Unchanged())
}

func (s *opened) Close() error { return errors.Join(s.Source.Close(), s.in.close()) }

// account looks at the whole folder of the adapter: weights that are no part of it are an error,
// unless options allow them.
func (s *opened) account(o Options) error {
	in, m := s.in, s.Manifest()
	note := func(format string, args ...any) { m.Notes = append(m.Notes, fmt.Sprintf(format, args...)) }
	switch {
	case in.isFolder() && in.name != "":
		if text := in.folder.noteNamed(); text != "" {
			note("%s", text)
		}
	case in.name == peftWeights, in.name == peftPickle:
		o = Options{AllowBeside: true}
	default:
		return nil
	}
	stray, others, err := in.lookBeside(m, o.Without)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		note("beside the adapter the directory holds other adapters, which are not used: %s", fault.List(others, 5))
	}
	switch {
	case len(stray) > 0 && !o.AllowBeside:
		return refuseBeside(stray).In(in.path("."))
	case len(stray) > 0 && !in.isFolder():
		note("this file is opened alone; beside it lie weights that are no part of it: %s", fault.List(stray, 5))
	default:
		s.beside = stray
	}
	return nil
}

// WeightsBeside lists the files of weights that lie in the directory of an opened adapter, are no
// part of it, and were not left out by Options.Without: paths within the directory, with slashes.
func WeightsBeside(src format.Source) []string {
	if s, ok := src.(*opened); ok {
		return s.beside
	}
	return nil
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
