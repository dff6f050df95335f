package checkpoint

import (
	"maps"
	"slices"
	"strings"
)

// pipelineIndex is the file that makes a directory a pipeline of diffusers. It names the classes of
// the components, each of which has a folder: unet, transformer, text_encoder, vae, ….
const pipelineIndex = "model_index.json"

// IsPipeline reports whether the checkpoint is a pipeline of several models, as diffusers saves it.
// The names of its tensors begin with the folder of their model and a dot.
func (c *Checkpoint) IsPipeline() bool { return c.pipeline }

// findComponents finds the weights of a pipeline's components. A component can hold several copies
// of its weights; as diffusers does, it prefers the one without a variant in its name. It returns
// nil if the directory is no pipeline.
func (c *Checkpoint) findComponents(have map[string]bool) (models []model, err error) {
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
		for _, name := range weightFiles {
			list := name
			if !have[folder+name] {
				list += ".index.json"
			}
			if !have[folder+list] {
				continue
			}
			m, err := c.readModel(folder, list)
			if err != nil {
				return nil, err
			}
			models = append(models, m)
			break
		}
	}
	c.pipeline = models != nil
	return models, nil
}

// prefix returns the text in front of the names of the model's tensors.
func (m *model) prefix() string {
	if m.folder == "" {
		return ""
	}
	return strings.TrimSuffix(m.folder, "/") + "."
}
