package checkpoint

import (
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/shards"
)

// llama-gguf-split of llama.cpp divides a GGUF file into parts, NAME-00001-of-00003.gguf and so on.
// The first part has the keys of the model and may have no tensor. Each part has its number, from 0
// on, the number of parts, and the number of the tensors of all.

// maxParts is the largest number that the keys hold.
const maxParts = 1<<16 - 1

// IsSplit reports whether a checkpoint is a model in several GGUF files.
func IsSplit(c *Checkpoint) bool { return len(c.Files) > 1 && inGGUF(c.Files[0]) }

// nParts returns the number of parts that a file says its model has: 1 for a whole one, and for a
// file of another container.
func nParts(f *File) (int, error) {
	n, ok, err := splitNumber(f, splitCountKey)
	switch {
	case err != nil:
		return 0, err
	case !ok || n <= 1:
		return 1, nil
	}
	return int(n), nil
}

// splitNumber returns the value of a key that is a number of at most 32 bits; ok is false for a
// file without it.
func splitNumber(f *File, key string) (n uint64, ok bool, err error) {
	h, isGGUF := f.header.(*ggufHeading)
	if !isGGUF {
		return 0, false, nil
	}
	v, ok := h.Value(key)
	if !ok {
		return 0, false, nil
	}
	n, isCount := v.Uint()
	if !isCount || n > 1<<31-1 || key != splitTensorsKey && n > maxParts {
		return 0, false, fault.New(fault.Corrupt, "%s is %v, want a number of parts or tensors", key, v)
	}
	return n, true, nil
}

// checkWhole refuses a file that is one part of a model, where the others cannot be found.
func checkWhole(f *File) error {
	n, err := nParts(f)
	if err == nil && n > 1 {
		err = fault.New(fault.Unsupported, "this GGUF file is one of the %d parts of a model (%s)", n, splitCountKey).
			WithHint("open the first part by its path, with the others beside it")
	}
	return fault.InFile(err, f.Path)
}

// addParts adds the other parts of a model to the files to open, if the first file is a part. The
// keys say that it is one, and its name where the others are.
func (m *model) addParts(c *Checkpoint, f *File) error {
	n, err := nParts(f)
	if err != nil {
		return err
	}
	name := m.shards[0]
	set, isNamed := shards.SetOf(name)
	isNamed = isNamed && inGGUF(f) && m.index == nil
	no, _, err := splitNumber(f, splitNoKey)
	switch {
	case err != nil:
		return err
	case n == 1 && isNamed && set.Count > 1:
		return fault.New(fault.Mismatch, "the name is that of one of %d parts of a model, and the file has no key %s that says so", set.Count, splitCountKey).
			WithHint("give the file another name if it holds the whole model")
	case n == 1:
		return nil
	case !isNamed || set.Count != n || no >= uint64(n) || name != set.Name(int(no)+1):
		return fault.New(fault.Mismatch, "this is part %d of the %d parts of a model (%s, %s), and its name does not say so",
			no+1, n, splitNoKey, splitCountKey).WithHint("name the parts as llama-gguf-split does: NAME-%05d-of-%05d.gguf, …", 1, n)
	case no != 0:
		return fault.New(fault.Unsupported, "this is part %d of the %d parts of a model", no+1, n).WithHint("give the first part, %s", set.Name(1))
	}
	for i := 2; i <= n; i++ {
		m.shards = append(m.shards, set.Name(i))
	}
	c.IsDir = true
	c.Left = slices.DeleteFunc(c.Left, func(name string) bool { return slices.Contains(m.shards, name) })
	return nil
}

// absent returns the error for a file that the model lacks.
func (m *model) absent(file string) *fault.Error {
	if m.index != nil {
		return shards.Absent(file, "checkpoint")
	}
	return fault.New(fault.Truncated, "the model has %d parts, and %s does not exist", len(m.shards), file).
		WithHint("the checkpoint was not downloaded completely; fetch the missing part")
}

// checkParts checks that files are the parts of one model, and lets their headings know the whole
// of it. One file alone is whole.
func checkParts(files []*File) error {
	if n, err := nParts(files[0]); err != nil || n == 1 {
		return err
	}
	nTensors := 0
	for i, f := range files {
		if err := checkPart(files, i); err != nil {
			return fault.InFile(err, f.Path)
		}
		nTensors += len(f.Tensors)
	}
	want, ok, err := splitNumber(files[0], splitTensorsKey)
	switch {
	case err != nil:
	case !ok:
		err = fault.New(fault.Corrupt, "this is the first part of a model, and it lacks the key %s", splitTensorsKey)
	case want != uint64(nTensors):
		err = fault.New(fault.Mismatch, "the %d parts of the model have %s together, and %s is %d",
			len(files), fault.Count(nTensors, "tensor"), splitTensorsKey, want).WithHint("the parts are of different models; fetch all parts of one")
	}
	if err != nil {
		return fault.InFile(err, files[0].Path)
	}
	var whole []gguf.Tensor
	for _, f := range files {
		for i := range f.Tensors {
			t, _ := ggufTensor(&f.Tensors[i]) // which the file holds
			whole = append(whole, t)
		}
	}
	for _, f := range files {
		f.header.(*ggufHeading).was = summaryOf(whole)
	}
	return nil
}

// checkPart checks the number of part i, and the counts that it states.
func checkPart(files []*File, i int) error {
	f := files[i]
	if !inGGUF(f) {
		return fault.New(fault.Mismatch, "this is no GGUF file, and should be part %d of a model", i+1)
	}
	for _, c := range []struct {
		key  string
		want uint64
	}{{splitCountKey, uint64(len(files))}, {splitNoKey, uint64(i)}} {
		got, ok, err := splitNumber(f, c.key)
		switch {
		case err != nil:
			return err
		case !ok:
			return fault.New(fault.Mismatch, "the file lacks the key %s, and should be part %d of a model", c.key, i+1)
		case got != c.want:
			return fault.New(fault.Mismatch, "%s is %d, want %d in part %d of %d", c.key, got, c.want, i+1, len(files)).
				WithHint("the parts are of different splits; fetch all parts of one")
		}
	}
	first, _, _ := splitNumber(files[0], splitTensorsKey)
	n, ok, err := splitNumber(f, splitTensorsKey)
	if err == nil && ok && n != first {
		err = fault.New(fault.Mismatch, "%s is %d, and %d in the first part", splitTensorsKey, n, first).
			WithHint("the parts are of different models; fetch all parts of one")
	}
	return err
}
