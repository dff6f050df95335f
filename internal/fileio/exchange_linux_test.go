package fileio_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/internal/testkit"
)

// TestThePlaceIsNeverEmptyWhileADirectoryIsReplaced polls the place: a run killed at any moment
// must leave the old output or the new one.
func TestThePlaceIsNeverEmptyWhileADirectoryIsReplaced(t *testing.T) {
	final := filepath.Join(t.TempDir(), "out")
	testkit.Write(t, filepath.Join(final, "a"), []byte("old"))
	done, absent := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				absent <- n
				return
			default:
				if _, err := os.Lstat(final); err != nil {
					n++
				}
			}
		}
	}()
	for range 30 {
		s := begin(t, final, true)
		put(t, s, "a", "new")
		if err := s.Commit(true); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	if n := <-absent; n > 0 {
		t.Errorf("the output was not there %d times, want never", n)
	}
}
