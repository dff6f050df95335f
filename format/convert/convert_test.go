package convert_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

const testdata = "../../testdata"

// adapters lists every adapter directory of the test data.
func adapters(t *testing.T) []string {
	t.Helper()
	var dirs []string
	for _, pattern := range []string{"peft/merge/*/adapter*", "peft/refuse/*/adapter*", "peft/eras/*/adapter", "corpus/*", "demo/adapter-r8"} {
		found, err := filepath.Glob(filepath.Join(testdata, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no adapters match %s", pattern)
		}
		dirs = append(dirs, found...)
	}
	return dirs
}

// unreadable lists the adapters that cannot be opened. Every other one must convert, whether merge
// applies it or not.
var unreadable = []string{"alpha-nan", "lfs-pointer", "no-tensors"}

// TestPEFTComesBackByteForByte converts every adapter to the container and back, and compares all
// files.
func TestPEFTComesBackByteForByte(t *testing.T) {
	ctx := context.Background()
	converted := 0
	for _, dir := range adapters(t) {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue
		}
		name, _ := filepath.Rel(testdata, dir)
		t.Run(name, func(t *testing.T) {
			src, err := convert.OpenDigested(ctx, dir, convert.Options{})
			for _, u := range unreadable {
				if strings.Contains(dir, u) {
					if err == nil {
						t.Fatal("opened without an error")
					}
					return
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			tmp := t.TempDir()
			container, back := filepath.Join(tmp, "a.lora"), filepath.Join(tmp, "back")
			store(t, container, convert.LoRA(), src)
			lora, err := convert.Open(t.Context(), container, convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer lora.Close()
			store(t, back, convert.PEFT(), lora)
			files := []string{"adapter_model.safetensors", "adapter_config.json", "README.md"}
			if _, err := os.Stat(filepath.Join(dir, "adapter_model.bin")); err == nil {
				files = files[1:] // a pickle comes back as safetensors, which the content ids compare
			}
			for _, file := range files {
				want, err1 := os.ReadFile(filepath.Join(dir, file))
				got, err2 := os.ReadFile(filepath.Join(back, file))
				if errors.Is(err1, os.ErrNotExist) && errors.Is(err2, os.ErrNotExist) {
					continue
				}
				if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes (%v) came back, want the %d of the source (%v)", file, len(got), err2, len(want), err1)
				}
			}
			a, err1 := format.ContentID(ctx, src)
			b, err2 := format.ContentID(ctx, lora)
			if err1 != nil || err2 != nil || a != b {
				t.Errorf("the content id is %s (%v) in the container and %s (%v) in the directory", b, err2, a, err1)
			}
			returned, err := convert.Open(t.Context(), back, convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer returned.Close()
			if c, err := format.ContentID(ctx, returned); err != nil || c != a {
				t.Errorf("the content id is %s (%v) in the directory that came back, want %s", c, err, a)
			}
			converted++
		})
	}
	if converted < 100 {
		t.Errorf("%d adapters were converted, want at least 100", converted)
	}
}

func store(t *testing.T, path string, d convert.Dialect, src format.Source) {
	t.Helper()
	sink, err := convert.Create(path, d, convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := format.Copy(context.Background(), sink, src); err != nil {
		t.Fatal(err)
	}
}

// TestPEFTComesBackAsAFile: the configuration is written beside the weights, and an existing one
// with other content stays.
func TestPEFTComesBackAsAFile(t *testing.T) {
	dir := filepath.Join(testdata, "demo/adapter-r8")
	src, err := convert.OpenDigested(context.Background(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	tmp := t.TempDir()
	out := filepath.Join(tmp, "one.safetensors")
	store(t, out, convert.PEFT(), src)
	for name, original := range map[string]string{"one.safetensors": "adapter_model.safetensors", "adapter_config.json": "adapter_config.json"} {
		got, err1 := os.ReadFile(filepath.Join(tmp, name))
		want, err2 := os.ReadFile(filepath.Join(dir, original))
		if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not %s (%v, %v)", name, original, err1, err2)
		}
	}
	store(t, filepath.Join(tmp, "two.safetensors"), convert.PEFT(), src) // the same configuration is shared
	if err := os.WriteFile(filepath.Join(tmp, "adapter_config.json"), []byte("{}"), 0o666); err != nil {
		t.Fatal(err)
	}
	three := filepath.Join(tmp, "three.safetensors")
	sink, err := convert.Create(three, convert.PEFT(), convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := format.Copy(context.Background(), sink, src); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Copy = %v, want that a configuration already exists", err)
	}
	if _, err := os.Stat(three); err == nil {
		t.Error("the weights are there without their configuration")
	}
}

// tampered is a source whose first tensor reads as zeros.
type tampered struct{ format.Source }

func (s tampered) ReadBlobAt(p []byte, i int, off int64) error {
	if err := s.Source.ReadBlobAt(p, i, off); err != nil || i != 0 {
		return err
	}
	clear(p)
	return nil
}

// TestARestoredFileIsProved: tensors that differ from the source file's are not restored.
func TestARestoredFileIsProved(t *testing.T) {
	src, err := convert.OpenDigested(context.Background(), filepath.Join(testdata, "demo/adapter-r8"), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	out := filepath.Join(t.TempDir(), "out")
	sink, err := convert.Create(out, convert.PEFT(), convert.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = format.Copy(context.Background(), sink, tampered{src})
	if !errors.Is(err, format.ErrCorrupt) || !strings.Contains(err.Error(), "R69") {
		t.Errorf("Copy = %v, want a broken R69", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(out)); len(left) > 0 {
		t.Errorf("%s was left behind", left[0].Name())
	}
}

// TestTheBaseInTheMetadataIsRead: Open reads fingerprints of a base from the metadata of a file of
// weights, whichever program wrote them.
func TestTheBaseInTheMetadataIsRead(t *testing.T) {
	const print = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	for _, c := range []struct{ value, wrong string }{
		{`{"w.weight":"` + print + `"}`, ""},
		{`{}`, ""},
		{`{"w.weight":"` + print[1:] + `"}`, "want 64 hexadecimal digits"},
		{`{"w.weight":"` + strings.ToUpper(print) + `"}`, "want 64 hexadecimal digits"},
		{`{"w.weight":1}`, "fingerprints of a base"},
		{`{"":"` + print + `"}`, "name has 0 bytes"},
		{`no JSON`, "fingerprints of a base"},
	} {
		dir := t.TempDir()
		testkit.Write(t, filepath.Join(dir, "adapter_config.json"), []byte(`{"peft_type":"LORA","r":1}`))
		testkit.Write(t, filepath.Join(dir, "adapter_model.safetensors"), testkit.Encode(map[string]string{"loratool.base": c.value},
			testkit.Values("base_model.model.w.lora_A.weight", dtype.F32, []uint64{1, 2}, 1, 2),
			testkit.Values("base_model.model.w.lora_B.weight", dtype.F32, []uint64{2, 1}, 1, 2)))
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		switch {
		case c.wrong == "" && err != nil:
			t.Errorf("%s: %v", c.value, err)
		case c.wrong == "":
			got := src.Manifest().Adapters[0].Base.Fingerprints
			if want := strings.Contains(c.value, print); (got["w.weight"] == print) != want {
				t.Errorf("%s: fingerprints %v", c.value, got)
			}
			src.Close()
		case !errors.Is(err, format.ErrCorrupt) || !strings.Contains(err.Error(), c.wrong):
			t.Errorf("%s: %v, want corrupt with %q", c.value, err, c.wrong)
		}
	}
}
