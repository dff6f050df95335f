package checkpoint_test

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/internal/checkpoint"
)

// streamed hides that the files of an fs.FS can be read by position.
type streamed struct{ fs.FS }

func (s streamed) Open(name string) (fs.File, error) {
	f, err := s.FS.Open(name)
	if d, ok := f.(fs.ReadDirFile); ok || err != nil {
		return d, err
	}
	return struct{ fs.File }{f}, nil
}

// TestOpenFSFindsWhatOpenFinds opens the same directory from disk and from other kinds of file
// system.
func TestOpenFSFindsWhatOpenFinds(t *testing.T) {
	files := map[string][]byte{
		"1.safetensors": weights("a", "b"), "sub/2.safetensors": weights("c"),
		"model.safetensors.index.json": index(t, map[string]string{
			"a": "1.safetensors", "b": "1.safetensors", "c": "sub/2.safetensors",
		}),
		"config.json": []byte(`{"model_type":"llama"}`), "vocab/words.txt": []byte("x"),
		"old.bin": []byte("x"), ".git/config": []byte("x"),
	}
	dir := directory(t, files)
	memory := make(fstest.MapFS)
	for name, content := range files {
		memory[path.Join("models", "m", name)] = &fstest.MapFile{Data: content}
	}
	want := open(t, dir)
	for _, c := range []struct {
		what  string
		files fs.FS
		name  string
	}{
		{"memory", memory, "models/m"}, {"streams", streamed{memory}, "models/m"}, {"the disk", os.DirFS(dir), "."},
	} {
		got, err := checkpoint.OpenFS(t.Context(), c.files, c.name)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		defer got.Close()
		checkNames(t, got, want.Names()...)
		if !slices.Equal(got.Side, want.Side) || !slices.Equal(got.Left, want.Left) || got.Config.ModelType != "llama" {
			t.Errorf("%s: beside %q, left %q, model %q; the disk: %q, %q", c.what, got.Side, got.Left, got.Config.ModelType, want.Side, want.Left)
		}
		if text, err := got.Dir.Read("config.json", checkpoint.MaxJSONBytes); string(text) != string(files["config.json"]) || err != nil {
			t.Errorf("%s: config.json is %q, %v", c.what, text, err)
		}
		if paths := got.Paths(); len(paths) > 0 {
			t.Errorf("%s: %q are taken for paths of the machine", c.what, paths)
		}
		one, err := checkpoint.OpenFS(t.Context(), c.files, path.Join(c.name, "1.safetensors"))
		if err != nil {
			t.Errorf("%s, one file: %v", c.what, err)
			continue
		}
		defer one.Close()
		checkNames(t, one, "a", "b")
		if one.IsDir || one.Config.ModelType != "llama" {
			t.Errorf("%s, one file: directory %v, model %q", c.what, one.IsDir, one.Config.ModelType)
		}
	}
}
