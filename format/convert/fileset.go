package convert

import (
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/shards"
)

// fileSet is the files that hold the weights of one adapter: one file, or the shards that
// transformers writes if the adapter is larger than max_shard_size.
type fileSet struct {
	files []string      // paths within the place, the shards in their order; nil for none
	index *shards.Index // nil for one file, and for shards without an index
	err   error         // why the shards cannot be opened
}

// isSharded reports whether several files hold the weights.
func (s *fileSet) isSharded() bool { return len(s.files) > 1 }

// source returns the name of the weights for the record of their origin: that of the file, or the
// one that a single file would have.
func (s *fileSet) source() string {
	name := path.Base(s.files[0])
	if set, ok := shards.SetOf(name); ok && s.isSharded() {
		return set.Whole
	}
	return name
}

// open opens a file of the set.
func (s *fileSet) open(p place, name string) (*fileio.Input, error) {
	file, err := p.dir.Open(name)
	if errors.Is(err, fs.ErrNotExist) && s.index != nil {
		return nil, shards.Absent(path.Base(name), "adapter").In(p.path(path.Dir(name)))
	}
	if err != nil {
		return nil, err
	}
	file.Path = p.path(name)
	return file, nil
}

// shardIndexes are the names of indexes of an adapter's shards. save_pretrained of a transformers
// model that has an adapter gives the index the name of the model's.
var shardIndexes = []string{
	peftWeights + shards.IndexSuffix, "model.safetensors" + shards.IndexSuffix,
	peftPickle + shards.IndexSuffix, "pytorch_model.bin" + shards.IndexSuffix,
}

// isShard reports whether a file is a shard of an adapter, by its name.
func isShard(name string) bool {
	set, ok := shards.SetOf(name)
	return ok && (set.Whole == peftWeights || set.Whole == peftPickle)
}

// peftFilesIn returns PEFT's files of weights in a directory. Safetensors win over a pickle, and
// one file over shards, as in PEFT.
func (p place) peftFilesIn(dir string) fileSet {
	for _, name := range []string{peftWeights, peftPickle} {
		if p.isFile(path.Join(dir, name)) {
			return fileSet{files: []string{path.Join(dir, name)}}
		}
	}
	have := make(map[string]bool)
	some := false
	entries, _ := p.dir.List(dir) // a directory that cannot be listed has no shards
	for _, e := range entries {
		have[e.Name()] = true
		some = some || isShard(e.Name())
	}
	for _, name := range shardIndexes {
		isOwn := strings.HasPrefix(name, "adapter_model.")
		if !have[name] || !some && !isOwn {
			continue
		}
		index, err := shards.ReadIndex(p.dir, path.Join(dir, name))
		switch {
		case err != nil && isOwn:
			return fileSet{files: []string{path.Join(dir, name)}, err: err}
		case err == nil && (isOwn || !slices.ContainsFunc(index.Files, func(s string) bool { return !isShard(s) })):
			return fileSet{files: joinAll(dir, index.Files), index: index}
		}
	}
	if !some {
		return fileSet{}
	}
	return p.shardsByName(dir, have)
}

// shardsByName returns the shards of a directory without an index. Only the number in their names
// says that none is missing.
func (p place) shardsByName(dir string, have map[string]bool) fileSet {
	sets := make(map[string]shards.Set)
	whole := peftPickle
	for name := range have {
		if set, ok := shards.SetOf(name); ok && isShard(name) {
			sets[set.Pattern()] = set
			if set.Whole == peftWeights {
				whole = peftWeights
			}
		}
	}
	maps.DeleteFunc(sets, func(_ string, set shards.Set) bool { return set.Whole != whole })
	patterns := slices.Sorted(maps.Keys(sets))
	set := sets[patterns[0]]
	missing := set.Missing(have)
	switch {
	case len(patterns) > 1:
		return fileSet{files: []string{path.Join(dir, patterns[0])}, err: fault.New(fault.Mismatch,
			"the directory holds shards of several adapters (%s), and no index says which of them to use",
			strings.Join(patterns, " and ")).In(p.path(dir)).WithHint("move the others out of the directory")}
	case missing != "":
		isOwn := func(name string) bool { other, ok := shards.SetOf(name); return ok && other.Pattern() == set.Pattern() }
		example := slices.Sorted(maps.Keys(have))
		example = slices.DeleteFunc(example, func(name string) bool { return !isOwn(name) })
		return fileSet{files: joinAll(dir, example[:1]), err: set.Incomplete(example[0], missing, "adapter").In(p.path(dir))}
	}
	all := make([]string, set.Count)
	for i := range all {
		all[i] = path.Join(dir, set.Name(i+1))
	}
	return fileSet{files: all}
}

// joinAll puts a directory before names.
func joinAll(dir string, names []string) []string {
	joined := make([]string, len(names))
	for i, name := range names {
		joined[i] = path.Join(dir, name)
	}
	return joined
}
