// Package shards says how the files of one set of weights divide its tensors. The library of the
// Hugging Face hub writes whole-00001-of-00002.safetensors and so on for whole.safetensors, and an
// index whole.safetensors.index.json. Models and adapters share this package, and so the words of
// its errors.
package shards

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/jsontext"
)

// IndexSuffix is the end of the name of an index of shards, after the name that the one file would
// have.
const IndexSuffix = ".index.json"

// MaxIndexBytes bounds an index, which is read whole. The largest real ones, of models with
// thousands of experts, have a few megabytes.
const MaxIndexBytes = 64 << 20

// Index says which shard holds a tensor.
type Index struct {
	Files  []string          // the shards, sorted, each a slash-separated path within the directory
	FileOf map[string]string // by the name of the tensor
}

// ReadIndex reads an index. Its errors name the file.
func ReadIndex(dir fileio.Dir, name string) (*Index, error) {
	path := dir.Path(name)
	text, err := dir.Read(name, MaxIndexBytes)
	if err != nil {
		return nil, err
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := jsontext.Decode(text, &index); err != nil {
		return nil, fault.New(fault.Corrupt, "not an index of shards: %v", err).In(path)
	}
	if len(index.WeightMap) == 0 {
		return nil, fault.New(fault.Corrupt, "the index has no weight_map").In(path)
	}
	distinct := make(map[string]bool)
	for _, shard := range index.WeightMap {
		distinct[shard] = true
	}
	files := slices.Sorted(maps.Keys(distinct))
	for _, shard := range files {
		if !filepath.IsLocal(shard) || strings.ContainsAny(shard, `\`) {
			return nil, fault.New(fault.Corrupt, "the index names %q, which is not a file of its directory", shard).In(path)
		}
	}
	return &Index{files, index.WeightMap}, nil
}

// Check checks that every tensor is in the shard that the index names. holder returns the shard
// that holds a tensor, which is file if that one does; "" if none does. The error names no path.
func (x *Index) Check(holder func(tensor, file string) string) error {
	var wrong []string
	for tensor, file := range x.FileOf {
		if holder(tensor, file) != file {
			wrong = append(wrong, tensor)
		}
	}
	if wrong == nil {
		return nil
	}
	tensor := slices.Min(wrong)
	file := x.FileOf[tensor]
	other := holder(tensor, file)
	if other == "" {
		return fault.New(fault.Corrupt, "the index says that %s holds %q, but it does not", file, tensor)
	}
	return fault.New(fault.Corrupt, "the index says that %s holds %q, but %s does", file, tensor, other)
}

// Absent returns the error for a shard that does not exist and is in the index. whole is the word
// for all shards together.
func Absent(shard, whole string) *fault.Error {
	return fault.New(fault.Truncated, "the index names the shard %s, which does not exist", shard).
		WithHint("the %s was not downloaded completely; fetch the missing shard", whole)
}

// Twice returns the error for a tensor in two shards.
func Twice(tensor, one, other string) *fault.Error {
	return fault.New(fault.Corrupt, "tensor %q is both in %s and in %s", tensor, one, other)
}

// Set is the shards of one set of weights by the name that they share.
type Set struct {
	Whole string // the name that a single file would have: "model.safetensors"
	Count int    // how many shards there are, by the names of the shards

	stem, count, ext string // as in the names
	digits           int    // of the number of a shard
}

// name matches the name of a shard: that of the whole file, the shard's number, and their count.
var name = regexp.MustCompile(`^([^/]+)-(\d{1,9})-of-(\d{1,9})(\.[a-z]+)$`)

// SetOf returns the set that a file belongs to, by its name; ok is false for a file that is no
// shard.
func SetOf(file string) (s Set, ok bool) {
	m := name.FindStringSubmatch(file)
	if m == nil {
		return Set{}, false
	}
	n, err := strconv.Atoi(m[3])
	return Set{Whole: m[1] + m[4], Count: n, stem: m[1], count: m[3], ext: m[4], digits: len(m[2])}, err == nil && n > 0
}

// Name returns the name of shard i, from 1 on.
func (s *Set) Name(i int) string {
	return fmt.Sprintf("%s-%0*d-of-%s%s", s.stem, s.digits, i, s.count, s.ext)
}

// Incomplete returns the error for shards without an index of which one is missing. example is a
// shard that exists, and whole the word for all shards together.
func (s *Set) Incomplete(example, missing, whole string) *fault.Error {
	return fault.New(fault.Truncated, "the directory holds shards such as %s, but neither their index %s nor the shard %s",
		example, s.Whole+IndexSuffix, missing).
		WithHint("the %s was not downloaded completely; fetch the missing files", whole)
}

// Pattern returns a pattern of the shell that matches the names of the shards.
func (s *Set) Pattern() string { return fmt.Sprintf("%s-*-of-%s%s", s.stem, s.count, s.ext) }

// Missing returns the first shard that is not among the files of a directory, "" if all are.
func (s *Set) Missing(have map[string]bool) string {
	for i := 1; i <= s.Count; i++ {
		if shard := s.Name(i); !have[shard] {
			return shard
		}
	}
	return ""
}
