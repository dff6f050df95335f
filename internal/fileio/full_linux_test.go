package fileio_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/testkit"
)

// TestCopyRangeReportsAFullDisk copies to /dev/full, where every write fails with ENOSPC.
func TestCopyRangeReportsAFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "src")
	testkit.Write(t, path, noise(5, 100))
	src, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for what, source := range map[string]io.ReaderAt{"a file": src, "memory": bytes.NewReader(noise(5, 100))} {
		if err := fileio.CopyRange(full, 0, source, 0, 100); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("CopyRange(%s to a full disk) = %v, want %v", what, err, syscall.ENOSPC)
		}
	}
}
