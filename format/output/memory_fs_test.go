package output_test

import (
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format/output"
)

// TestMemoryIsAFileSystem: the standard library's test reads every file and directory in all ways.
func TestMemoryIsAFileSystem(t *testing.T) {
	var m output.Memory
	if err := fstest.TestFS(m.FS()); err != nil {
		t.Errorf("before Commit: %v", err)
	}
	names := []string{"a.json", "deep/er/b.bin", "deep/c.bin", "deeper.txt"}
	for _, name := range names {
		f, err := m.Create(output.Info{Name: name})
		if err == nil {
			_, err = f.WriteAt([]byte(name), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(m.FS(), names...); err != nil {
		t.Error(err)
	}
}
