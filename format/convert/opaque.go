package convert

import (
	"context"
	"io"
	"path"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/pickle"
)

// openOpaque describes weights of any dialect as tensors without a meaning. A container keeps them
// with their header, and Restore writes a safetensors file back byte for byte. No program applies
// them.
func openOpaque(ctx context.Context, in *Input) (format.Source, error) {
	if in.name == "" {
		return nil, in.folder.refuse()
	}
	t, err := wholeTable(ctx, in)
	if err != nil {
		return nil, fault.InFile(err, in.Path())
	}
	f := &tensorFile{table: t, manifest: format.Manifest{Tensors: t.tensors}}
	if len(f.tensors) == 0 {
		return nil, fault.New(fault.Corrupt, "the file holds no tensors").In(in.Path())
	}
	a := format.Adapter{Method: format.OtherMethod("opaque"), Requires: []format.Requirement{{Feature: format.FeatureOpaque}}}
	for i := range f.tensors {
		a.Beside = append(a.Beside, format.Beside{Action: format.Opaque, Target: f.tensors[i].Name, Tensor: i})
	}
	f.manifest.Adapters = []format.Adapter{a}
	f.manifest.Provenance.Source = in.weights.source()
	for _, name := range []string{format.ModelCard, format.PEFTConfig} { // ascending, as the format wants
		content, err := in.ReadFile(name, maxSideBytes)
		if err != nil {
			return nil, err
		}
		if content != nil {
			f.attach(name, content)
		}
	}
	if f.header != nil {
		f.attach(format.SourceHeader, nil)
	}
	if f.pickle != nil && len(f.pickle.Left) > 0 {
		f.note("the pickle also holds values that are not tensors; they are left out: %s", fault.List(f.pickle.Left, 3))
	}
	if dialect := naming.Dialect(f.keys()); dialect != "" {
		f.note("the tensors are archived without their meaning; their keys are %s", dialect)
	}
	return f, format.Validate(&f.manifest)
}

// wholeTable lists all tensors of the weights. In a pickle they may be nested in dictionaries and
// lists; their names are then the keys and indices on the way, joined by dots.
func wholeTable(ctx context.Context, in *Input) (*table, error) {
	if in.err != nil && !isList(in) {
		return nil, in.err
	}
	if !isPickle(in.start) || in.weights.isSharded() {
		err := in.readTable()
		return in.table, err
	}
	p, err := pickle.ReadNested(in.file, in.file.Size)
	if err != nil {
		return nil, err
	}
	t := pickleTable(in.file, p)
	return t, t.checkNames()
}

// RestoreTo writes the source file of the single adapter of src, and the files attached to it, into
// a directory under the names of [RestoredNames], and commits the directory. If exact is true, the
// weights are the source file byte for byte (spec/FORMAT.md, section 12), compared with the
// container's SHA-256 if it has one. Otherwise the source was a pickle, which cannot be restored,
// and the weights are a safetensors file with the same names and values.
func RestoreTo(ctx context.Context, out output.Output, src format.Source) (exact bool, err error) {
	m := src.Manifest()
	if len(m.Adapters) != 1 {
		return false, fault.New(fault.Unsupported, "this is a bundle of %d adapters, want a single adapter", len(m.Adapters)).
			WithHint("name one of them, as in FILE#%s", m.Adapters[0].Name)
	}
	weights, err := restoreWeights(ctx, src)
	if err != nil {
		return false, err
	}
	names := RestoredNames(src)
	err = storeTo(ctx, out, src, func() error {
		if err := writeFile(out, output.Info{Name: names[0]}, weights); err != nil {
			return err
		}
		for _, name := range names[1:] {
			content, err := attachment(src, name)
			if err != nil {
				return err
			}
			if err := writeFile(out, output.Info{Name: name}, sideFile{name, content}.write); err != nil {
				return err
			}
		}
		return nil
	})
	return hasAttachment(src, format.SourceHeader), err
}

// RestoredNames returns the names of the files that RestoreTo writes, the weights first.
func RestoredNames(src format.Source) []string {
	m := src.Manifest()
	names := []string{weightsName(m)}
	for _, a := range m.Attachments {
		if a.Name != format.SourceHeader {
			names = append(names, a.Name)
		}
	}
	return names
}

// restoreWeights returns the writer of the source file of src.
func restoreWeights(ctx context.Context, src format.Source) (func(io.Writer) error, error) {
	if hasAttachment(src, format.SourceHeader) {
		return restoreOr(ctx, src)
	}
	return keepKeys(ctx, src)
}

// weightsName returns the name for restored weights: the name of the source file, if the container
// records it.
func weightsName(m *format.Manifest) string {
	if m.Adapters[0].Dialect == "peft" {
		return peftWeights
	}
	name := strings.TrimSuffix(m.Provenance.Source, path.Ext(m.Provenance.Source))
	if !fileio.IsName(name) || strings.ContainsFunc(name, isControl) {
		name = "source"
	}
	return name + ".safetensors"
}
