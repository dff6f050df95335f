package convert

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
)

// This file joins an adapter with the weights that its trainer trained whole and saved in files of
// their own (see beside.go). Each tensor of such a file replaces one of the base, as a module of
// PEFT's modules_to_save does.

// wholeFile is a file of weights that Options.With names.
type wholeFile struct {
	dir  fileio.Dir
	name string // in dir
}

func (w *wholeFile) path() string { return w.dir.Path(w.name) }

// wholeFiles finds the files that Options.With names.
func wholeFiles(
	paths []string, locate func(string) (fileio.Dir, string, error),
) (all []wholeFile, err error) {
	for _, at := range paths {
		dir, name, err := locate(at)
		if err != nil {
			return nil, err
		}
		if name == "" {
			return nil, fault.New(fault.Unsupported, "%q is a directory, and Options.With names files", at).
				WithHint("name each of its files of weights")
		}
		all = append(all, wholeFile{dir, name})
	}
	return all, nil
}

// isWith reports whether Options.With names a file of the input's place.
func (in *Input) isWith(name string) bool {
	return slices.ContainsFunc(in.with, func(w wholeFile) bool {
		return in.dir.IsSame(name, w.dir, w.name)
	})
}

// joined is an adapter with the tensors of other files.
type joined struct {
	format.Source // the adapter
	manifest      format.Manifest
	blobs         []joinedBlob // of the manifest: the tensors, then the attachments
	inputs        fileio.Identities
	closers       []io.Closer
}

// joinedBlob is blob number index of the adapter, or of a table.
type joinedBlob struct {
	table *table // nil for the adapter
	index int
}

// joinWhole returns a source of one adapter with the tensors of the files that in names. It owns
// src, also after an error.
func joinWhole(ctx context.Context, src format.Source, in *Input) (format.Source, error) {
	if len(in.with) == 0 {
		return src, nil
	}
	j := &joined{Source: src, manifest: *src.Manifest()}
	if err := j.addFiles(ctx, in); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

func (j *joined) addFiles(ctx context.Context, in *Input) error {
	m := &j.manifest
	if len(m.Adapters) != 1 {
		return fault.New(fault.Unsupported, "the file holds %d adapters, and Options.With is for one",
			len(m.Adapters)).In(in.Path()).WithHint("name one of them, as in FILE#%s", m.Adapters[0].Name)
	}
	isOpaque := func(r format.Requirement) bool { return r.Feature == format.FeatureOpaque }
	if slices.ContainsFunc(m.Adapters[0].Requires, isOpaque) {
		return fault.New(fault.Unsupported, "the adapter was archived without its meaning, so no "+
			"weights can join it").In(in.Path())
	}
	m.Adapters, m.Tensors = slices.Clone(m.Adapters), slices.Clone(m.Tensors)
	m.Notes = slices.Clone(m.Notes)
	m.Adapters[0].Beside = slices.Clone(m.Adapters[0].Beside)
	for i := range m.Tensors {
		j.blobs = append(j.blobs, joinedBlob{nil, i})
	}
	if in.name != "" && in.isWith(in.name) {
		return fault.New(fault.Mismatch, "%q is the adapter itself, and Options.With takes weights beside "+
			"it", in.name).In(in.path("."))
	}
	for i := range in.with {
		w := &in.with[i]
		if err := j.addFile(ctx, w); err != nil {
			return fault.InFile(err, w.path())
		}
	}
	j.attach()
	return nil
}

// attach keeps the adapter's attachments, except the header of its file: the file does not hold the
// new tensors.
func (j *joined) attach() {
	own := j.Source.Manifest()
	n := len(own.Tensors)
	j.manifest.Attachments = nil
	for i, a := range own.Attachments {
		if a.Name != format.SourceHeader {
			j.manifest.Attachments = append(j.manifest.Attachments, a)
			j.blobs = append(j.blobs, joinedBlob{nil, n + i})
		}
	}
}

// addFile adds the tensors of a file.
func (j *joined) addFile(ctx context.Context, w *wholeFile) error {
	file, err := w.dir.Open(w.name)
	if err != nil {
		return err
	}
	file.Path = w.path()
	j.closers, j.inputs = append(j.closers, file), append(j.inputs, file.Identity)
	t, err := readTable(ctx, file)
	if err != nil {
		return err
	}
	if err := t.checkNames(); err != nil {
		return err
	}
	targets, err := wholeTargets(t)
	if err != nil {
		return err
	}
	for i, target := range targets {
		if target == "" {
			continue
		}
		if err := j.add(ctx, t, i, target); err != nil {
			return err
		}
	}
	if t.pickle != nil {
		j.manifest.Notes = append(j.manifest.Notes, t.pickle.Notes("tensors of "+w.name)...)
	}
	return nil
}

// add adds tensor i of a table as the new value of a tensor of the base.
func (j *joined) add(ctx context.Context, t *table, i int, target string) error {
	a, tensor := &j.manifest.Adapters[0], t.tensors[i]
	for _, b := range a.Beside {
		if b.Target != target || b.Action != format.Replace {
			continue
		}
		same, err := j.isSame(ctx, b.Tensor, t, i)
		if err == nil && !same {
			err = fault.New(fault.Mismatch, "%q has another value in the adapter, or in another file",
				target).WithHint("the output can hold only one of the two: leave this file out")
		}
		return err
	}
	key := tensor.Name
	if tensor.Name = target; a.Dialect == PEFT().Name() {
		tensor.Name = savedKey(a, target)
	}
	isNamed := func(x format.Tensor) bool { return x.Name == tensor.Name }
	if slices.ContainsFunc(j.manifest.Tensors, isNamed) {
		return fault.New(fault.Mismatch, "the adapter has a tensor %q of another meaning", key)
	}
	at := len(j.manifest.Tensors)
	j.manifest.Tensors = append(j.manifest.Tensors, tensor)
	j.blobs = append(j.blobs, joinedBlob{t, i})
	a.Beside = append(a.Beside, format.Beside{Action: format.Replace, Target: target, Tensor: at})
	return nil
}

// isSame reports whether tensor at of the adapter has the dtype, the shape and the bytes of tensor
// i of a table.
func (j *joined) isSame(ctx context.Context, at int, t *table, i int) (bool, error) {
	have, want := &j.manifest.Tensors[at], &t.tensors[i]
	if have.DType != want.DType || !slices.Equal(have.Shape, want.Shape) {
		return false, nil
	}
	p, q := make([]byte, 1<<18), make([]byte, 1<<18)
	for off, size := int64(0), have.NBytes(); off < size; off += int64(len(p)) {
		n := min(int64(len(p)), size-off)
		err := errors.Join(ctx.Err(), j.ReadBlobAt(p[:n], at, off), t.readBlobAt(q[:n], i, off))
		if err != nil || !bytes.Equal(p[:n], q[:n]) {
			return false, err
		}
	}
	return true, nil
}

// noteFile says that the adapter's own file cannot be restored byte for byte.
func (j *joined) noteFile() {
	j.manifest.Notes = append(j.manifest.Notes,
		"a .lora file keeps the adapter and the weights that join it, and not the files that they come from")
}

func (j *joined) Manifest() *format.Manifest { return &j.manifest }

func (j *joined) ReadBlobAt(p []byte, i int, off int64) error {
	if b := j.blobs[i]; b.table != nil {
		return b.table.readBlobAt(p, b.index, off)
	}
	return j.Source.ReadBlobAt(p, j.blobs[i].index, off)
}

func (j *joined) Unchanged() error {
	return errors.Join(fileio.Unchanged(j.Source), j.inputs.Unchanged())
}

func (j *joined) Close() error {
	err := j.Source.Close()
	for _, c := range j.closers {
		err = errors.Join(err, c.Close())
	}
	return err
}

// wholeTargets returns the tensor of the base that each tensor of a file replaces, "" for one that
// has no effect.
func wholeTargets(t *table) ([]string, error) {
	keys := t.keys()
	if len(keys) == 0 {
		return nil, fault.New(fault.Corrupt, "the file holds no tensors")
	}
	if areAllOfAdapter(keys) {
		return nil, fault.New(fault.Unsupported, "the file is another adapter: its keys are %s",
			naming.Dialect(keys)).WithHint("give it as a second adapter")
	}
	targets, first := make([]string, len(keys)), make(map[string]string)
	for i, key := range keys {
		target, err := wholeTarget(key)
		if err != nil {
			return nil, err
		}
		targets[i] = target
		if isOriginal(key) {
			continue
		}
		if other, ok := first[target]; ok {
			return nil, fault.New(fault.Mismatch, "%q and %q are values of one tensor, %s", other, key,
				target)
		}
		first[target] = key
	}
	for i, key := range keys { // the value before the training counts only alone
		if _, isTrained := first[targets[i]]; isTrained && isOriginal(key) {
			targets[i] = ""
		}
	}
	return targets, nil
}

// isOriginal reports whether a key is that of the copy of a module that PEFT keeps as it was before
// the training.
func isOriginal(key string) bool {
	return slices.Contains(strings.Split(key, "."), "original_module")
}

// addedRows are the keys of the file new_embeddings, in which rows of added tokens follow those of
// the base's vocabulary.
var addedRows = []string{"input_embeddings", "output_embeddings"}

// wholeTarget returns the name of a parameter in the model that was trained, without the parts that
// PEFT and frameworks put into it.
func wholeTarget(key string) (string, error) {
	if slices.Contains(addedRows, key) {
		return "", fault.New(fault.Unsupported, "%q holds rows of added tokens, and the file does not say "+
			"which rows of the base's vocabulary they follow", key).
			WithHint("append the rows to the base's embedding and save the whole tensor under its name")
	}
	plain := strings.TrimPrefix(naming.StripWrappers(key), "module.") // of DistributedDataParallel
	if isOriginal(plain) {
		parts := strings.Split(plain, ".")
		plain = strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "original_module" }), ".")
	}
	parsed := parsePEFTKey(plain)
	if parsed.role != rolePlain {
		return "", fault.New(fault.Unsupported, "%q belongs to an adapter, and Options.With takes weights that "+
			"were trained whole", key).WithHint("if the file is another adapter, merge that too")
	}
	return parsed.module, nil
}
