package convert_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/testkit"
)

// TestUnusualFilesOfAFolder: the names are those that trainers write, and that attackers would.
func TestUnusualFilesOfAFolder(t *testing.T) {
	dir := t.TempDir()
	testkit.WriteAdapter(t, dir, 1, 1, ones("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")...)
	want := map[string]string{
		"optimizer.pt": "training state", "rng_state_0.pth": "training state", "trainer_state.json": "training state",
		"training_args.bin": "training state", "modeling_x.py": "code", "setup.SH": "code", "old.pkl": "pickle",
		"pytorch_model.bin": "pickle", "q.gguf": "weights",
		"README.md": "", "tokenizer.json": "", "chat_template.jinja": "", "merges.txt": "",
	}
	for name := range want {
		testkit.Write(t, filepath.Join(dir, name), []byte("abc"))
	}
	src, err := convert.Open(t.Context(), dir, convert.Options{AllowBeside: true})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	all, err := convert.UnusualFiles(src)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, f := range all {
		if got[f.Name] = f.Kind; f.Bytes != 3 {
			t.Errorf("%s has %d bytes, want 3", f.Name, f.Bytes)
		}
	}
	for name, kind := range want {
		if got[name] != kind {
			t.Errorf("%s: got %q, want %q", name, got[name], kind)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("also %v", got)
	}
	if !slices.IsSortedFunc(all, func(a, b convert.UnusualFile) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	}) {
		t.Errorf("not in order: %v", all)
	}
	file, err := convert.Open(t.Context(), filepath.Join(dir, "adapter_model.safetensors"), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if all, err := convert.UnusualFiles(file); err != nil || len(all) > 0 {
		t.Errorf("a file: got %v, error %v", all, err)
	}
}
