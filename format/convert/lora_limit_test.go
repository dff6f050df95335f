package convert_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
)

// TestCheckRefusesALargeManifest: the check of a container's sink, before any work, finds the manifest
// above the limit that its options give.
func TestCheckRefusesALargeManifest(t *testing.T) {
	src, err := convert.Open(filepath.Join(testdata, "demo/adapter-r8"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	out := filepath.Join(t.TempDir(), "out.lora")
	if err := convert.Check(t.Context(), out, convert.LoRA, src, convert.CreateOptions{MaxManifestBytes: 1}); !errors.Is(err, format.ErrLimit) {
		t.Errorf("Check with a limit of 1 byte = %v, want a limit", err)
	}
	if err := convert.Check(t.Context(), out, convert.LoRA, src, convert.CreateOptions{}); err != nil {
		t.Errorf("Check = %v", err)
	}
}
