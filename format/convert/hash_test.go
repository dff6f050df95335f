package convert_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// wantHashes are the hashes that testdata/hashes/make.py computed with hashlib and with the
// format's own writer.
func wantHashes(t *testing.T, name string) convert.Hashes {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testdata, "hashes/expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]convert.Hashes
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all[name]
}

// pattern makes the bytes of a tensor as make.py does.
func pattern(t testkit.Tensor, seed int) testkit.Tensor {
	n, _ := dtype.NElements(t.Shape)
	t.Data = make([]byte, int(n)*t.DType.Size())
	for i := range t.Data {
		t.Data[i] = byte(i*i/7+i+seed) & 0x3f
	}
	return t
}

func checkHashes(t *testing.T, name string, src format.Source, want convert.Hashes) {
	t.Helper()
	got, err := convert.HashesOf(t.Context(), src)
	if err != nil || got != want {
		t.Errorf("HashesOf(%s) = %+v, %v, want %+v", name, got, err, want)
	}
}

// TestHashesOfAFile: of a file in the order of the format's own writer and of one in another order,
// and of containers made from them.
func TestHashesOfAFile(t *testing.T) {
	for _, name := range []string{"kohya.safetensors", "by-name.safetensors"} {
		want := wantHashes(t, name)
		path := filepath.Join(testdata, "hashes", name)
		src := open(t, path, convert.Options{})
		checkHashes(t, name, src, want)
		container := filepath.Join(t.TempDir(), "a.lora")
		store(t, container, convert.LoRA(), src)
		lora := open(t, container, convert.Options{})
		checkHashes(t, "the container of "+name, lora, want)

		inFile, err := convert.SourceMetadata(t.Context(), src)
		inContainer, err2 := convert.SourceMetadata(t.Context(), lora)
		if err != nil || err2 != nil || !maps.Equal(inFile, inContainer) ||
			inFile["sshs_model_hash"] != want.Model || inFile["ss_training_comment"] == "" {
			t.Errorf("%s: metadata %q, %v, of its container %q, %v", name, inFile, err, inContainer,
				err2)
		}
		comesBack(t, path)
	}
}

// TestHashesBeyondTheFirstMiB: the legacy hash is that of data, or of metadata, and with two long
// entries nobody can say it.
func TestHashesBeyondTheFirstMiB(t *testing.T) {
	down := testkit.Tensor{Name: "lora_unet_a.lora_down.weight", DType: dtype.F16,
		Shape: []uint64{8, 73728}}
	up := testkit.Tensor{Name: "lora_unet_a.lora_up.weight", DType: dtype.F32,
		Shape: []uint64{16, 8}}
	large := []testkit.Tensor{pattern(up, 6), pattern(down, 5)}
	path := write(t, map[string]string{"ss_a": "1\n2", "ss_b": `"\`, "other": "x"}, large...)
	checkHashes(t, "large", open(t, path, convert.Options{}), wantHashes(t, "large"))

	kohya := open(t, filepath.Join(testdata, "hashes/kohya.safetensors"), convert.Options{})
	var small []testkit.Tensor
	for i, x := range kohya.Manifest().Tensors {
		data := make([]byte, x.NBytes())
		if err := kohya.ReadBlobAt(data, i, 0); err != nil {
			t.Fatal(err)
		}
		small = append(small, testkit.Tensor{Name: x.Name, DType: x.DType, Shape: x.Shape,
			Data: data})
	}
	long := strings.Repeat("é\t", 400_000)
	path = write(t, map[string]string{"ss_a": long}, small...)
	want := wantHashes(t, "long-metadata")
	checkHashes(t, "long-metadata", open(t, path, convert.Options{}), want)
	path = write(t, map[string]string{"ss_a": long, "ss_b": ""}, small...)
	got, err := convert.HashesOf(t.Context(), open(t, path, convert.Options{}))
	if err != nil || got.Legacy != "" || got.Model != want.Model {
		t.Errorf("two long entries: %+v, %v, want no legacy hash and the model hash %s", got, err,
			want.Model)
	}
}

// TestAFileThatWasRewrittenHasItsOwnHashes: the hashes in the header are those of another file.
func TestAFileThatWasRewrittenHasItsOwnHashes(t *testing.T) {
	old := map[string]string{"sshs_model_hash": "stale", "sshs_legacy_hash": "stale",
		"modelspec.hash_sha256": "stale", "modelspec.title": "Cats", "ss_steps": "7"}
	dir := filepath.Join(t.TempDir(), "peft")
	pair := factors("base_model.model.q_proj", "lora_B.weight", "lora_A.weight", 2)
	testkit.WriteAdapter(t, dir, 2, 2, pair...)
	weights := testkit.Encode(old, pair...)
	testkit.Write(t, filepath.Join(dir, "adapter_model.safetensors"), weights)
	prints := map[string]string{"q": strings.Repeat("0", 64)}
	src := convert.WithBase(open(t, dir, convert.Options{}), format.Base{Fingerprints: prints})
	out := filepath.Join(t.TempDir(), "new")
	store(t, out, convert.PEFT(), src)

	written := open(t, out, convert.Options{})
	h, err := convert.HashesOf(t.Context(), written)
	if err != nil {
		t.Fatal(err)
	}
	got, err := convert.SourceMetadata(t.Context(), written)
	if err != nil || got["sshs_model_hash"] != h.Model || got["sshs_legacy_hash"] != h.Legacy ||
		got["modelspec.hash_sha256"] != "0x"+h.Data {
		t.Errorf("the new file says %q, %v, and its hashes are %+v", got, err, h)
	}
	for _, key := range []string{"modelspec.title", "ss_steps"} {
		if got[key] != old[key] {
			t.Errorf("the new file has %s %q, want %q", key, got[key], old[key])
		}
	}
}
