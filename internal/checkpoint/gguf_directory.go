package checkpoint

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/shards"
)

// findGGUF finds the only model in GGUF of a directory, whatever its name is. It returns nil if
// there is none.
func findGGUF(dir fileio.Dir, have map[string]bool) ([]model, error) {
	firsts := make(map[string]bool) // the only file of each model, or its first part
	for name := range have {
		if strings.Contains(name, "/") || !strings.EqualFold(path.Ext(name), ".gguf") {
			continue
		}
		set, ok := shards.SetOf(name)
		if !ok {
			firsts[name] = true
			continue
		}
		if firsts[set.Name(1)] = true; !have[set.Name(1)] {
			return nil, fault.New(fault.Truncated, "the directory holds %s, but not the first part of the model, %s", name, set.Name(1)).
				WithHint("the checkpoint was not downloaded completely; fetch the missing part")
		}
	}
	found := slices.Sorted(maps.Keys(firsts))
	if len(found) > 1 {
		found = slices.DeleteFunc(found, func(name string) bool { return !holdsModel(dir, name) })
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return []model{{list: found[0], shards: found}}, nil
	}
	return nil, fault.New(fault.Mismatch, "the directory holds %s; it is not clear which one to use", strings.Join(found, " and ")).
		WithHint("give the path of the file to use")
}

// holdsModel reports whether a GGUF file holds a language model, not an adapter or a projector of
// images. A file that cannot be read counts as a model.
func holdsModel(dir fileio.Dir, name string) bool {
	in, err := dir.Open(name)
	if err != nil {
		return true
	}
	defer in.Close()
	g, err := gguf.Read(context.Background(), in, in.Size)
	if err != nil {
		return true
	}
	kind, _ := g.Text("general.type")
	architecture, _ := g.Text("general.architecture")
	return (kind == "" || kind == "model") && architecture != "clip"
}
