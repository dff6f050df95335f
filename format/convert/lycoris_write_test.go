package convert_test

import (
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format/convert"
)

// TestLyCORISComesBackFromComfyUI: the files of LyCORIS whose modules the tables know become files
// of ComfyUI and come back to kohya's, with the same layers, scales and numbers.
func TestLyCORISComesBackFromComfyUI(t *testing.T) {
	paths, _ := filepath.Glob(filepath.Join(testdata, "lycoris/adapters/*.safetensors"))
	n := 0
	for _, path := range paths {
		src := open(t, path, convert.Options{})
		there, err := written(t, src, convert.ComfyUI(), convert.CreateOptions{})
		if err != nil {
			continue // the tables do not know all of its modules
		}
		back, err := written(t, there, convert.Kohya(), convert.CreateOptions{})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		n++
		equalLines(t, path, contents(t, back), contents(t, src))
	}
	if n < 4 {
		t.Errorf("%d of %d files came back, want 4 or more", n, len(paths))
	}
}
