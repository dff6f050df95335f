package fileio_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
)

// TestCreateReservesRoom compares a stage's file with one reserved here, so it passes on file
// systems that cannot reserve.
func TestCreateReservesRoom(t *testing.T) {
	dir := t.TempDir()
	stage, err := fileio.NewStage(filepath.Join(dir, "out"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Abort()
	for _, size := range []int64{0, 1, pageBytes, 3*pageBytes + 1, 1 << 20} {
		plain, err := os.Create(filepath.Join(dir, "plain"))
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		if size > 0 {
			syscall.Fallocate(int(plain.Fd()), 0, 0, size)
		}
		f, err := stage.Create("f", size)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var want, got syscall.Stat_t
		if err := syscall.Fstat(int(plain.Fd()), &want); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Fstat(int(f.Fd()), &got); err != nil {
			t.Fatal(err)
		}
		if got.Size != size || got.Blocks < want.Blocks {
			t.Errorf("Create(%d) made a file of %d bytes in %d blocks, want %d in at least %d", size, got.Size, got.Blocks, size, want.Blocks)
		}
	}
}
