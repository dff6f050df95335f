package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/loratool/loratool/internal/testkit"
)

// TestCleanRemovesWhatIsOldAndOnlyOnRequest has remains of another machine, so that no lock tells
// of them.
func TestCleanRemovesWhatIsOldAndOnlyOnRequest(t *testing.T) {
	const old, young = ".old.loratool-00000000-1", ".young.loratool-00000000-1"
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, young), []byte("half"))
	testkit.Write(t, filepath.Join(dir, old), []byte("half"))
	testkit.Write(t, filepath.Join(dir, "model.safetensors"), []byte("whole"))
	for _, name := range []string{old, "model.safetensors"} {
		then := time.Now().Add(-25 * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		out  string // a part of it
		left []string
	}{
		{[]string{dir, "--older-than", "26h"}, exitDone, "nothing to remove", []string{old, young, "model.safetensors"}},
		{[]string{dir, "--dry-run"}, exitDone, "would remove " + old + "\n", []string{old, young, "model.safetensors"}},
		{[]string{dir, "--older-than", "59m"}, exitUsage, "", []string{old, young, "model.safetensors"}},
		{[]string{dir, "--older-than", "day"}, exitUsage, "", []string{old, young, "model.safetensors"}},
		{[]string{}, exitUsage, "", []string{old, young, "model.safetensors"}},
		{[]string{filepath.Join(dir, "absent")}, exitFailed, "", []string{old, young, "model.safetensors"}},
		{[]string{dir, "--json"}, exitDone, `"` + old + `"`, []string{young, "model.safetensors"}},
		{[]string{dir, "--json"}, exitDone, `"removed": []`, []string{young, "model.safetensors"}},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append([]string{"loratool", "clean"}, c.args...), &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.out) {
			t.Errorf("clean %q = %d with %q and %q, want %d with %q", c.args, code, &stdout, &stderr, c.code, c.out)
		}
		var left []string
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if !slices.Equal(left, c.left) {
			t.Errorf("clean %q left %q, want %q", c.args, left, c.left)
		}
	}
}
