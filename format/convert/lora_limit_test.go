package convert_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
)

// TestCheckRefusesALargeManifest: before any work, Check finds that the manifest exceeds the limit
// of the options.
func TestCheckRefusesALargeManifest(t *testing.T) {
	src, err := convert.Open(t.Context(), filepath.Join(testdata, "demo/adapter-r8"), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	out := filepath.Join(t.TempDir(), "out.lora")
	if err := convert.Check(t.Context(), out, convert.LoRA(), src, convert.CreateOptions{MaxManifestBytes: 1}); !errors.Is(err, format.ErrLimit) {
		t.Errorf("Check with a limit of 1 byte = %v, want a limit", err)
	}
	if err := convert.Check(t.Context(), out, convert.LoRA(), src, convert.CreateOptions{}); err != nil {
		t.Errorf("Check = %v", err)
	}
}

// TestLargeContainersAreReplaced: a container whose manifest exceeds the default limit of a reader
// may still be replaced as a container.
func TestLargeContainersAreReplaced(t *testing.T) {
	b := format.NewBuilder("peft")
	b.Linear("q_proj", 1, 1, format.Float32s([]float32{1, 2}, 1, 2), format.Float32s([]float32{3, 4}, 2, 1))
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	src.Manifest().Metadata = map[string]string{"long": strings.Repeat("x", 17<<20)}
	out := filepath.Join(t.TempDir(), "out.lora")
	for range 2 {
		sink, err := convert.Create(out, convert.LoRA(), convert.CreateOptions{Replace: true, MaxManifestBytes: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if err := format.Copy(t.Context(), sink, src); err != nil {
			t.Errorf("Store = %v", err)
		}
	}
	if r, err := format.Open(out); !errors.Is(err, format.ErrLimit) {
		t.Errorf("Open = %v, %v, want a limit", r, err)
	}
}
