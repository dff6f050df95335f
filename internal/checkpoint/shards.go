package checkpoint

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/loratool/loratool/internal/fault"
)

// shardName matches the name of a shard: the name of the whole file, the shard's number, and the
// number of shards.
var shardName = regexp.MustCompile(`^([^/]+)-(\d{5})-of-(\d{5})(\.[a-z]+)$`)

// withoutIndex returns the error for a directory with shards but no index, nil if it has no shards.
// Such shards are refused: without an index transformers could load neither them nor a model merged
// from them.
func withoutIndex(files []string) *fault.Error {
	have := make(map[string]bool)
	for _, name := range files {
		have[name] = true
	}
	for _, name := range files {
		m := shardName.FindStringSubmatch(name)
		if m == nil || !isWeights(m[1]+m[4]) {
			continue
		}
		index := m[1] + m[4] + indexSuffix
		n, _ := strconv.Atoi(m[3])
		for i := 1; i <= n; i++ {
			if shard := fmt.Sprintf("%s-%05d-of-%s%s", m[1], i, m[3], m[4]); !have[shard] {
				return fault.New(fault.Truncated, "the directory holds shards such as %s, but neither their "+
					"index %s nor the shard %s", name, index, shard).
					WithHint("the checkpoint was not downloaded completely; fetch the missing files")
			}
		}
		e := fault.New(fault.Unsupported, "the directory holds all %d shards, such as %s, but not their "+
			"index %s", n, name, index)
		if m[4] != ".safetensors" {
			return e.WithHint("fetch it from the source of the shards")
		}
		return e.WithHint(`fetch it from the source of the shards, or write it in Python: json.dump({"metadata": {}, `+
			`"weight_map": {name: file for file in sorted(glob.glob("%s-*-of-%s.safetensors")) `+
			`for name in safe_open(file, "np").keys()}}, open("%s", "w"))`, m[1], m[3], index)
	}
	return nil
}
