package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// Dialects is a set of dialects in order. The first one that recognises an input opens it.
type Dialects []Dialect

// With returns a set that asks the given dialects first and then those of ds.
func (ds Dialects) With(more ...Dialect) Dialects { return slices.Concat(more, ds) }

// Named returns the dialect called name. It returns nil if there is none; Create and CreateTo panic
// with a nil dialect, so check for it.
func (ds Dialects) Named(name string) Dialect {
	for _, d := range ds {
		if d.Name() == name {
			return d
		}
	}
	return nil
}

// Names returns the names of the dialects, in their order.
func (ds Dialects) Names() []string {
	names := make([]string, len(ds))
	for i, d := range ds {
		names[i] = d.Name()
	}
	return names
}

// Written returns the dialects of the set that can be written; the others are only read.
func (ds Dialects) Written() Dialects {
	return slices.DeleteFunc(slices.Clone(ds), isReadOnly)
}

// isReadOnly reports whether a dialect of this package is only read.
func isReadOnly(d Dialect) bool {
	r, ok := d.(interface{ isReadOnly() bool })
	return ok && r.isReadOnly()
}

// Open opens the adapter at path, a file or a directory, in the dialect that its content shows. It
// reads only headers and configurations. The caller closes the source. An error either wraps a kind
// of package format or comes from the operating system. If the adapter's directory also holds
// weights that are not part of the adapter, Open fails unless o allows them. The path FILE#NAME
// opens one adapter of a bundle ([SplitMember]). ctx bounds only this call.
func (ds Dialects) Open(ctx context.Context, path string, o Options) (format.Source, error) {
	file, name := SplitMember(path)
	in, err := lookAt(ctx, file)
	if err != nil {
		return nil, err
	}
	if in.with, err = wholeFiles(o.With, fileio.LocateOnDisk); err != nil {
		return nil, errors.Join(err, in.close())
	}
	src, err := ds.open(ctx, in, o)
	if err == nil && name != "" {
		src, err = selectMember(src, file, name)
	}
	if err != nil {
		return nil, err
	}
	return joinWhole(ctx, src, in)
}

// OpenFS is Open for a file or directory of an fs.FS, except that name is never FILE#NAME: use
// format.Select for one adapter of a bundle. It reads a file that is not an io.ReaderAt into
// memory.
func (ds Dialects) OpenFS(ctx context.Context, files fs.FS, name string, o Options) (format.Source, error) {
	in, err := lookIn(ctx, files, name)
	if err != nil {
		return nil, err
	}
	locate := func(name string) (fileio.Dir, string, error) { return fileio.Locate(files, name) }
	if in.with, err = wholeFiles(o.With, locate); err != nil {
		return nil, errors.Join(err, in.close())
	}
	src, err := ds.open(ctx, in, o)
	if err != nil {
		return nil, err
	}
	return joinWhole(ctx, src, in)
}

// OpenReader is Open for a single file of size bytes, such as a .lora file in memory. Closing the
// source does not close r.
func (ds Dialects) OpenReader(ctx context.Context, r io.ReaderAt, size int64, o Options) (format.Source, error) {
	if len(o.With) > 0 {
		return nil, fault.New(fault.Unsupported, "Options.With names files, and a reader is a single one").
			WithHint("use OpenFS")
	}
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
	src, err := ds.describe(ctx, in, o)
	if err != nil {
		return nil, err
	}
	if src, err = withPrefixes(src, o.Prefix); err != nil {
		return nil, fault.InFile(err, in.Path())
	}
	s := &opened{Source: src, in: in}
	if err := s.account(o); err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return s, nil
}

// describe opens an input in its dialect, or without one.
func (ds Dialects) describe(ctx context.Context, in *Input, o Options) (format.Source, error) {
	if o.Opaque {
		return openOpaque(ctx, in)
	}
	d, err := ds.choose(in, o)
	if err != nil {
		return nil, err
	}
	src, err := d.Open(ctx, in, o)
	if err != nil {
		return nil, fault.InFile(err, in.Path())
	}
	return src, nil
}

// choose returns the dialect for an input: the one that the user names, or else the first one that
// recognises it.
func (ds Dialects) choose(in *Input, o Options) (Dialect, error) {
	d := ds.recognise(in)
	if o.From != "" && (d == nil || d.Name() != LoRA().Name()) {
		if d = ds.Named(o.From); d == nil {
			return nil, fault.New(fault.Unsupported, "unknown dialect %q, want %s",
				o.From, strings.Join(ds.Names(), ", "))
		}
	}
	if d == nil {
		return nil, in.refuse()
	}
	return d, nil
}

func (ds Dialects) recognise(in *Input) Dialect {
	for _, d := range ds {
		if d.Recognise(in) {
			return d
		}
	}
	return nil
}

// IsAdapter reports whether path holds an adapter, in a dialect of the set or in one that this
// package can only name. If it returns true, Open either opens the path or says best why it cannot.
// IsAdapter returns false if ctx ends.
func (ds Dialects) IsAdapter(ctx context.Context, path string) bool {
	file, _ := SplitMember(path)
	in, err := lookAt(ctx, file)
	if err != nil {
		return false
	}
	defer in.close()
	return !in.isModel() && ds.recognise(in) != nil || in.hasAdapter()
}

// OpenDigested is Open for a source that will be converted; see the function OpenDigested.
func (ds Dialects) OpenDigested(ctx context.Context, path string, o Options) (format.Source, error) {
	src, err := ds.Open(ctx, path, o)
	if err != nil {
		return nil, err
	}
	if j, ok := src.(*joined); ok {
		j.noteFile()
		return src, nil
	}
	if s := openedOf(src); s != nil {
		if p, ok := s.Source.(*prefixed); ok {
			p.noteFile()
		}
		if f, ok := s.Source.(*tensorFile); ok {
			if err := f.digest(ctx); err != nil {
				return nil, errors.Join(err, src.Close())
			}
		}
	}
	return src, nil
}

// opened is a source together with its input.
type opened struct {
	format.Source
	in     *Input
	beside []string
}

func (s *opened) Unchanged() error {
	return errors.Join(fileio.Unchanged(s.Source), s.in.Unchanged())
}

func (s *opened) Close() error { return errors.Join(s.Source.Close(), s.in.close()) }

// account examines the adapter's whole directory. Weights that are not part of the adapter are an
// error unless o allows them.
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
		note("the directory also holds other adapters, which are not used: %s", fault.List(others, 5))
	}
	switch {
	case len(stray) > 0 && !o.AllowBeside:
		return refuseBeside(in.place, stray).In(in.path("."))
	case len(stray) > 0 && !in.isFolder():
		note("only this file was opened; its directory also holds weights that are not part of it: %s", fault.List(stray, 5))
	default:
		s.beside = stray
	}
	return nil
}

// WeightsBeside returns the files of weights in the directory of an opened adapter that are not
// part of it and were not excluded by Options.Without. They are slash-separated paths within that
// directory.
func WeightsBeside(src format.Source) []string {
	if s := openedOf(src); s != nil {
		return s.beside
	}
	return nil
}

// openedOf returns the adapter's own file of a source, nil if this package did not open it.
func openedOf(src format.Source) *opened {
	if j, ok := src.(*joined); ok {
		src = j.Source
	}
	s, _ := src.(*opened)
	return s
}

// RecognisedBy says by which sign the dialect of an opened adapter was recognised, such as one of
// its keys. It is "" for a .lora file and for an adapter of PEFT, which has its configuration.
func RecognisedBy(src format.Source) string {
	s := openedOf(src)
	if s == nil {
		return ""
	}
	own := s.Source
	if p, ok := own.(*prefixed); ok {
		own = p.Source
	}
	if f, ok := own.(*tensorFile); ok {
		return f.sign
	}
	return ""
}

// WithBase returns a source of one adapter with the tensors of src and with base as the record of
// its base. It owns src: close it instead of src. The manifest of src does not change.
func WithBase(src format.Source, base format.Base) format.Source {
	m := *src.Manifest()
	m.Adapters = slices.Clone(m.Adapters)
	m.Adapters[0].Base = base
	return &described{src, &m}
}

// described is a source with another manifest.
type described struct {
	format.Source
	manifest *format.Manifest
}

func (d *described) Manifest() *format.Manifest { return d.manifest }

func (d *described) Unchanged() error { return fileio.Unchanged(d.Source) }
