package checkpoint

import (
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/shards"
)

// withoutIndex returns the error for a directory with shards but no index, nil if it has no shards.
// Such shards are refused: without an index transformers could load neither them nor a model merged
// from them.
func withoutIndex(files []string) *fault.Error {
	have := make(map[string]bool)
	for _, name := range files {
		have[name] = true
	}
	for _, name := range files {
		set, ok := shards.SetOf(name)
		if !ok || !isWeights(set.Whole) {
			continue
		}
		index := set.Whole + indexSuffix
		if shard := set.Missing(have); shard != "" {
			return set.Incomplete(name, shard, "checkpoint")
		}
		e := fault.New(fault.Unsupported, "the directory holds all %d shards, such as %s, but not their "+
			"index %s", set.Count, name, index)
		if !strings.HasSuffix(set.Whole, ".safetensors") {
			return e.WithHint("fetch it from the source of the shards")
		}
		return e.WithHint(`fetch it from the source of the shards, or write it in Python: json.dump({"metadata": {}, `+
			`"weight_map": {name: file for file in sorted(glob.glob("%s")) `+
			`for name in safe_open(file, "np").keys()}}, open("%s", "w"))`, set.Pattern(), index)
	}
	return nil
}
