package fileio_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/testkit"
)

const (
	pageBytes   = 4096    // the unit in which file systems share
	bufferBytes = 1 << 18 // the piece of a plain copy
)

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

// reader hides a file behind an io.ReaderAt, so that it is copied plainly.
type reader struct{ io.ReaderAt }

func TestCopyRangeCopiesTheRangeAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	content, ground := noise(1, 3*bufferBytes), noise(2, 3*bufferBytes)
	testkit.Write(t, filepath.Join(dir, "src"), content)
	src, err := os.Open(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	sources := map[string]io.ReaderAt{"a file": src, "a reader": reader{src}, "memory": bytes.NewReader(content)}
	for what, source := range sources {
		for _, n := range []int{0, 1, pageBytes - 1, pageBytes, pageBytes + 1, bufferBytes - 1, bufferBytes, bufferBytes + 1, 2*bufferBytes + 1} {
			for _, off := range [][2]int{{0, 0}, {1, 0}, {0, 1}, {3, 5}, {pageBytes, pageBytes}, {pageBytes, 1}, {0, bufferBytes - 1}} {
				path := filepath.Join(dir, "dst")
				testkit.Write(t, path, ground)
				dst, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				err = fileio.CopyRange(dst, int64(off[1]), source, int64(off[0]), int64(n))
				dst.Close()
				if err != nil {
					t.Errorf("CopyRange(%d bytes of %s from %d to %d) = %v", n, what, off[0], off[1], err)
					continue
				}
				want := bytes.Clone(ground)
				if end := off[1] + n; end > len(want) {
					want = append(want, make([]byte, end-len(want))...)
				}
				copy(want[off[1]:], content[off[0]:off[0]+n])
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("CopyRange(%d bytes of %s from %d to %d): the file differs from what was there with the range replaced", n, what, off[0], off[1])
				}
			}
		}
	}
}

func TestCopyRangeWithinOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	content := noise(3, 4*pageBytes)
	testkit.Write(t, path, content)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct{ from, to, n int }{{0, 2 * pageBytes, 2 * pageBytes}, {1, 2*pageBytes + 7, pageBytes}, {3 * pageBytes, 0, pageBytes}, {5, 4 * pageBytes, 100}} {
		testkit.Write(t, path, content)
		if err := fileio.CopyRange(f, int64(c.to), f, int64(c.from), int64(c.n)); err != nil {
			t.Fatal(err)
		}
		want := append(bytes.Clone(content), make([]byte, max(0, c.to+c.n-len(content)))...)
		copy(want[c.to:], content[c.from:c.from+c.n])
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("CopyRange(%d bytes from %d to %d of one file): the file is not what it should be", c.n, c.from, c.to)
		}
	}
}

func TestCopyRangeBeyondTheEndOfTheSourceFails(t *testing.T) {
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, "src"), noise(4, 100))
	src, err := os.Open(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(filepath.Join(dir, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	for what, source := range map[string]io.ReaderAt{"a file": src, "a reader": reader{src}} {
		for _, c := range []struct{ off, n int64 }{{0, 101}, {100, 1}, {1000, 1}} {
			if err := fileio.CopyRange(dst, 0, source, c.off, c.n); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("CopyRange(%d bytes from %d of %s of 100) = %v, want the end of the file", c.n, c.off, what, err)
			}
		}
	}
}
