package checkpoint

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/loratool/loratool/internal/fault"
)

// shardName is the name of a shard: the name of the whole, its number, and the number of all.
var shardName = regexp.MustCompile(`^([^/]+)-(\d{5})-of-(\d{5})\.safetensors$`)

// withoutIndex explains a directory that holds shards and no index of them; it is nil where there
// are none. Without the index transformers cannot load the shards either, nor what a merge would
// make of them, so they are not read.
func withoutIndex(files []string) *fault.Error {
	have := make(map[string]bool)
	for _, name := range files {
		have[name] = true
	}
	for _, name := range files {
		m := shardName.FindStringSubmatch(name)
		if m == nil || !slices.Contains(weightFiles, m[1]+".safetensors") {
			continue
		}
		index := m[1] + ".safetensors.index.json"
		n, _ := strconv.Atoi(m[3])
		for i := 1; i <= n; i++ {
			if shard := fmt.Sprintf("%s-%05d-of-%s.safetensors", m[1], i, m[3]); !have[shard] {
				return fault.New(fault.Truncated, "the directory holds shards such as %s, and neither their "+
					"index %s nor the shard %s", name, index, shard).
					WithHint("the checkpoint was not downloaded whole; fetch what is missing")
			}
		}
		return fault.New(fault.Unsupported, "the directory holds all %d shards, such as %s, and not their "+
			"index %s", n, name, index).
			WithHint(`fetch it from where the shards come from; or write it in Python: json.dump({"metadata": {}, `+
				`"weight_map": {name: file for file in sorted(glob.glob("%s-*-of-%s.safetensors")) `+
				`for name in safe_open(file, "np").keys()}}, open("%s", "w"))`, m[1], m[3], index)
	}
	return nil
}
