package checkpoint

import (
	"errors"
	"io/fs"

	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
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
