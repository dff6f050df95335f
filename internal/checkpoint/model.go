package checkpoint

import (
	"strings"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/shards"
)

// model says which files of a directory hold the weights of one model.
type model struct {
	folder string        // within the directory, with a slash at its end; "" for the directory itself
	list   string        // the only file, or the index of the shards
	shards []string      // the files, relative to the folder
	index  *shards.Index // nil without one
}

// prefix returns the text in front of the names of the model's tensors.
func (m *model) prefix() string {
	if m.folder == "" {
		return ""
	}
	return strings.TrimSuffix(m.folder, "/") + "."
}

// readModel describes the model whose weights are in the file list, or in the shards of this index.
func readModel(dir fileio.Dir, folder, list string) (m model, err error) {
	m = model{folder: folder, list: list, shards: []string{list}}
	if strings.HasSuffix(list, indexSuffix) {
		if m.index, err = shards.ReadIndex(dir, folder+list); err != nil {
			return m, err
		}
		m.shards = m.index.Files
	}
	return m, err
}
