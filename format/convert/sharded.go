package convert

import (
	"cmp"
	"path"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/shards"
)

// readTables reads the tables of all files of the weights, as one.
func readTables(in *Input) (*table, error) {
	all, err := readNamed(in, in.file)
	for _, file := range in.more {
		if err != nil {
			return all, err
		}
		var t *table
		if t, err = readNamed(in, file); err == nil {
			all, err = all.joined(t)
		}
	}
	if err == nil && in.weights.index != nil {
		err = all.checkIndex(in.weights.index)
	}
	return all, fault.InFile(err, in.Path())
}

// readNamed reads the table of one file, and checks the names of its tensors.
func readNamed(in *Input, file *fileio.Input) (*table, error) {
	t, err := readTable(in.ctx, file)
	if err == nil {
		err = t.checkNames()
	}
	return t, fault.InFile(err, cmp.Or(file.Path, in.Path()))
}

// partRef is a tensor of one of the parts of a table.
type partRef struct {
	part *table
	i    int
}

// joined returns a table with the tensors of t and then those of a further shard. t may be joined
// itself; it is not used any more.
func (t *table) joined(shard *table) (*table, error) {
	all := t
	if t.refs == nil {
		all = &table{file: t.file, parts: []*table{t}, tensors: t.tensors, holders: make(map[string]*table)}
		for i := range t.tensors {
			all.refs = append(all.refs, partRef{t, i})
			all.holders[t.tensors[i].Name] = t
		}
	}
	all.parts = append(all.parts, shard)
	for i := range shard.tensors {
		name := shard.tensors[i].Name
		if other := all.holders[name]; other != nil {
			return all, shards.Twice(name, other.base(), shard.base())
		}
		all.holders[name] = shard
		all.tensors, all.refs = append(all.tensors, shard.tensors[i]), append(all.refs, partRef{shard, i})
	}
	return all, nil
}

// base returns the name of the file without its directory.
func (t *table) base() string { return path.Base(t.file.Path) }

// checkIndex checks that every tensor is in the shard that the index names.
func (t *table) checkIndex(index *shards.Index) error {
	if t.holders == nil {
		t.holders = make(map[string]*table)
		for i := range t.tensors {
			t.holders[t.tensors[i].Name] = t
		}
	}
	return index.Check(func(tensor, file string) string {
		holder := t.holders[tensor]
		switch {
		case holder == nil:
			return ""
		case holder.base() == path.Base(file):
			return file
		}
		return holder.base()
	})
}

// metadata returns __metadata__ of a safetensors file, or of the first shard, or nil.
func (t *table) metadata() map[string]string {
	switch {
	case t.header != nil:
		return t.header.Metadata
	case t.parts != nil:
		return t.parts[0].metadata()
	}
	return nil
}

// notes returns remarks about the files of the table.
func (t *table) notes() (notes []string) {
	if t.pickle != nil {
		notes = t.pickle.Notes("tensors of the adapter")
	}
	for _, part := range t.parts {
		for _, note := range part.notes() {
			notes = append(notes, part.base()+": "+note)
		}
	}
	return notes
}

// restoring says how a .lora file gives back an adapter of this table, "" if byte for byte.
func (t *table) restoring() string {
	switch {
	case t.gguf != nil && t.nBlocked() > 0:
		return "a .lora file keeps the adapter and not its GGUF file: converting back writes the same values, with fewer keys and no blocks of Q8_0"
	case t.gguf != nil:
		return "a .lora file keeps the adapter and not its GGUF file: converting back writes the same values, with fewer keys"
	case t.parts != nil:
		return "the weights are in " + fault.Count(int64(len(t.parts)), "shard") + ": a .lora file gives them back as one file of safetensors, with the same names and values"
	case t.lost != "":
		return t.lost
	case t.arrays != nil:
		return "the weights are an archive of NumPy: a .lora file gives them back as safetensors, with the same names and values"
	case t.header == nil:
		return "the weights are a pickle: a .lora file gives them back as safetensors, with the same names and values"
	}
	return ""
}
