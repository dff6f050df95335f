package convert

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	safefile "github.com/loratool/loratool/format/safetensors"
)

// TestMetadataOfANewFileOfKohya: it keeps what the source says of the training, its hashes are
// those of the new tensors, and the scale of another dialect is left out.
func TestMetadataOfANewFileOfKohya(t *testing.T) {
	src, err := Open(t.Context(), "../../testdata/hashes/kohya.safetensors", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	source, err := SourceMetadata(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	stale := maps.Clone(source)
	stale["sshs_model_hash"], stale["modelspec.hash_sha256"] = "stale", "stale"
	stale["lora_adapter_metadata"], stale["alpha"] = "{}", "8"
	delete(stale, "sshs_legacy_hash") // every file of sd-scripts has it
	tensors := src.Manifest().Tensors
	same, err := kohyaMetadata(t.Context(), stale, tensors, src.ReadBlobAt)
	if err != nil || !maps.Equal(same, source) {
		t.Errorf("for the same tensors: %q, %v, want the metadata of the source", same, err)
	}

	renamed := append([]format.Tensor{}, tensors...)
	for i := range renamed {
		if i%2 == 0 {
			renamed[i].Name = "lora_unet" + renamed[i].Name[len("lora_te"):]
		}
	}
	metadata, err := kohyaMetadata(t.Context(), stale, renamed, src.ReadBlobAt)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := safefile.Write(t.Context(), &file, renamed, metadata, src.ReadBlobAt); err != nil {
		t.Fatal(err)
	}
	size := int64(file.Len())
	written, err := OpenReader(t.Context(), bytes.NewReader(file.Bytes()), size, Options{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := HashesOf(t.Context(), written)
	if err != nil || metadata["sshs_model_hash"] != h.Model || h.Model != h.Data ||
		metadata["modelspec.hash_sha256"] != "0x"+h.Data || h.Model == source["sshs_model_hash"] {
		t.Errorf("the new file says %q, and its hashes are %+v, %v", metadata, h, err)
	}
}

// TestMetadataOfANewFileWithoutATraining: A1111 takes a file with metadata, but without the version
// of its base, for one of Stable Diffusion 1.
func TestMetadataOfANewFileWithoutATraining(t *testing.T) {
	tensors := []format.Tensor{{Name: "lora_unet_q.alpha", DType: dtype.F32, Shape: []uint64{}}}
	read := func(p []byte, _ int, _ int64) error { clear(p); return nil }
	zero := fmt.Sprintf("0x%x", sha256.Sum256(make([]byte, 4)))
	for _, c := range []struct{ source, want map[string]string }{
		{nil, nil},
		{map[string]string{"format": "pt", "lora_adapter_metadata": "{}", "alpha": "8"}, nil},
		{map[string]string{"format": "pt", "name": "cats", "modelspec.hash_sha256": "stale"},
			map[string]string{"name": "cats", "modelspec.hash_sha256": zero}},
		{map[string]string{"format": "pt", "ss_steps": "1"}, map[string]string{"format": "pt",
			"ss_steps": "1", "sshs_model_hash": zero[2:], "sshs_legacy_hash": "e3b0c442"}},
	} {
		got, err := kohyaMetadata(t.Context(), c.source, tensors, read)
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("kohyaMetadata(%q) = %q, %v, want %q", c.source, got, err, c.want)
		}
	}
}

// TestMetadataOfANewFileHaveItsRankAndAlpha, as sd-scripts' own merges have.
func TestMetadataOfANewFileHaveItsRankAndAlpha(t *testing.T) {
	alpha := func(module string) format.Tensor {
		return format.Tensor{Name: module + ".alpha", DType: dtype.F32, Shape: []uint64{}}
	}
	down := func(module string, shape ...uint64) format.Tensor {
		return format.Tensor{Name: module + ".lora_down.weight", DType: dtype.F32, Shape: shape}
	}
	alphas := map[string]float64{"q.alpha": 4, "k.alpha": 4, "o.alpha": 2.5, "conv.alpha": 1}
	for _, c := range []struct {
		name                string
		dim, alpha          string // of the source
		wantDim, wantAlphas string
		tensors             []format.Tensor
	}{
		{"as before", "4", "4", "4", "4",
			[]format.Tensor{down("q", 4, 8), alpha("q"), down("k", 4, 8, 1, 1), alpha("k")}},
		{"another rank and alpha", "16", "16.0", "8", "4.0",
			[]format.Tensor{down("q", 8, 8), alpha("q")}},
		{"a fraction", "8", "1", "8", "2.5", []format.Tensor{down("o", 8, 8), alpha("o")}},
		{"layers that differ", "4", "4", "Dynamic", "Dynamic",
			[]format.Tensor{down("q", 4, 8), alpha("q"), down("o", 12, 8), alpha("o")}},
		{"a convolution", "4", "4", "4", "4",
			[]format.Tensor{down("q", 4, 8), alpha("q"), down("conv", 2, 8, 3, 3), alpha("conv")}},
		{"None of Python", "None", "Dynamic", "4", "4.0",
			[]format.Tensor{down("q", 4, 8), alpha("q")}},
		{"no layers of this kind", "4", "8", "4", "8", []format.Tensor{alpha("q")}},
	} {
		read := func(p []byte, i int, _ int64) error {
			clear(p)
			if x, ok := alphas[c.tensors[i].Name]; ok {
				dtype.Store(dtype.F32, p, 0, x)
			}
			return nil
		}
		source := map[string]string{"ss_network_dim": c.dim, "ss_network_alpha": c.alpha}
		got, err := kohyaMetadata(t.Context(), source, c.tensors, read)
		dim, alpha := got["ss_network_dim"], got["ss_network_alpha"]
		if err != nil || dim != c.wantDim || alpha != c.wantAlphas {
			t.Errorf("%s: dim %q, alpha %q, %v, want %q and %q",
				c.name, dim, alpha, err, c.wantDim, c.wantAlphas)
		}
	}
	zeros := func(p []byte, _ int, _ int64) error { clear(p); return nil }
	source, one := map[string]string{"ss_steps": "1"}, []format.Tensor{down("q", 4, 8)}
	got, err := kohyaMetadata(t.Context(), source, one, zeros)
	if _, ok := got["ss_network_dim"]; ok || err != nil {
		t.Errorf("the metadata got a rank: %q, %v", got, err)
	}
}
