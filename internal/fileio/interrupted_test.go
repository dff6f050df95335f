package fileio

import (
	"os"
	"path/filepath"
	"testing"
)

// TestAnInterruptedRunIsSeen: a journal or an output moved aside shows an unfinished run.
func TestAnInterruptedRunIsSeen(t *testing.T) {
	for _, c := range []struct {
		left, path string
		want       bool
	}{
		{journalMark + "0a0b0c0d-1", "", true},
		{journalMark + "0a0b0c0d-1", "adapter.safetensors", true},
		{".out.loratool-0a0b0c0d-1.old", "out", true},
		{".out.loratool-0a0b0c0d-1.old", "other", false},
		{".out.loratool-0a0b0c0d-1", "out", false}, // a stage, which replaces nothing yet
		{"adapter.safetensors", "adapter.safetensors", false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, c.left), nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if got := IsInterrupted(filepath.Join(dir, c.path)); got != c.want {
			t.Errorf("IsInterrupted(%q) beside %q = %v, want %v", c.path, c.left, got, c.want)
		}
	}
}
