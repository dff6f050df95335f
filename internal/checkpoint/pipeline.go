package checkpoint

import (
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fileio"
)

// pipelineIndex is the file that makes a directory a pipeline of diffusers. It names the classes of
// the components, each of which has a folder: unet, transformer, text_encoder, vae, ….
const pipelineIndex = "model_index.json"

// findComponents finds the weights of a pipeline's components. A component can hold several copies
// of its weights; as diffusers does, it prefers the one without a variant in its name. It returns
// nil if the directory is no pipeline.
func findComponents(dir fileio.Dir, have map[string]bool) (models []model, err error) {
	if !have[pipelineIndex] {
		return nil, nil
	}
	folders := make(map[string]bool)
	for name := range have {
		folders[folderOf(name)] = true
	}
	for _, folder := range slices.Sorted(maps.Keys(folders)) {
		if folder == "" {
			continue
		}
		for i := range containers {
			found := containers[i].lists(have, folder)
			if found == nil {
				continue
			}
			m, err := readModel(dir, folder, found[0])
			if err != nil {
				return nil, err
			}
			models = append(models, m)
			break
		}
	}
	return models, nil
}

// Unread lists the components of a pipeline whose weights are not read, because of their format or
// because a pickle is refused, each with one of these files.
func Unread(c *Checkpoint) map[string]string {
	files := make(map[string]string)
	for _, name := range c.Side {
		if folder, ok := strings.CutSuffix(folderOf(name), "/"); c.pipeline && ok && isForeign(name) {
			files[folder] = name
		}
	}
	for _, f := range c.Files { // the index of its shards is no other copy
		delete(files, strings.TrimSuffix(f.prefix, "."))
	}
	return files
}
