package checkpoint

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/jsontext"
)

// MaxJSONBytes bounds a configuration or index, which is read whole. The largest real indexes, of
// models with thousands of experts, have a few megabytes.
const MaxJSONBytes = 64 << 20

// ConfigName is the name of a model's configuration.
const ConfigName = "config.json"

// readConfig reads config.json; without the file it returns the zero value.
func readConfig(dir fileio.Dir) (config.Model, error) {
	const name = ConfigName
	text, err := dir.Read(name, MaxJSONBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return config.Model{}, nil
	}
	if err != nil {
		return config.Model{}, err
	}
	m, err := config.Parse(text)
	return m, fault.InFile(err, dir.Path(name))
}

// readIndex returns the shards that an index lists, each a path within the directory, and the shard
// of every tensor.
func readIndex(dir fileio.Dir, name string) (shards []string, shardOf map[string]string, err error) {
	path := dir.Path(name)
	text, err := dir.Read(name, MaxJSONBytes)
	if err != nil {
		return nil, nil, err
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := jsontext.Decode(text, &index); err != nil {
		return nil, nil, fault.New(fault.Corrupt, "not an index of shards: %v", err).In(path)
	}
	if len(index.WeightMap) == 0 {
		return nil, nil, fault.New(fault.Corrupt, "the index has no weight_map").In(path)
	}
	distinct := make(map[string]bool)
	for _, shard := range index.WeightMap {
		distinct[shard] = true
	}
	shards = slices.Sorted(maps.Keys(distinct))
	for _, shard := range shards {
		if !filepath.IsLocal(shard) || strings.ContainsAny(shard, `\`) {
			return nil, nil, fault.New(fault.Corrupt, "the index names %q, which is not a file of its directory", shard).In(path)
		}
	}
	return shards, index.WeightMap, nil
}
