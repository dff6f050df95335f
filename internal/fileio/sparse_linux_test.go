package fileio_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fileio"
)

// TestHolesStayHoles copies a file of 5 GB, more than 32 bits can address, with data in three
// places.
func TestHolesStayHoles(t *testing.T) {
	dir := t.TempDir()
	const size = 5_000_000_000
	in, err := os.Create(filepath.Join(dir, "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := in.Truncate(size); err != nil {
		t.Fatal(err)
	}
	data := noise(6, 3*pageBytes)
	places := []int64{0, 1<<32 - pageBytes, size - int64(len(data))}
	for _, off := range places {
		if _, err := in.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	like := fileio.LikeFile(in)
	s := begin(t, filepath.Join(dir, "out"), false)
	out, err := s.CreateLike("", size, like)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := fileio.CopyRange(out, 0, in, 0, size); err != nil {
		t.Fatal(err)
	}
	for _, off := range places {
		got := make([]byte, len(data))
		if _, err := out.ReadAt(got, off); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the data at %d are not what was copied: %v", off, err)
		}
	}
	var was, st syscall.Stat_t
	if err := errors.Join(syscall.Fstat(int(in.Fd()), &was), syscall.Fstat(int(out.Fd()), &st)); err != nil {
		t.Fatal(err)
	}
	if st.Size != size {
		t.Errorf("the copy has %d bytes, want %d", st.Size, int64(size))
	}
	if st.Blocks > was.Blocks+2048 {
		t.Errorf("the copy takes %d blocks on the disk, want about the %d of the original", st.Blocks, was.Blocks)
	}
}

// TestWrittenZerosStayHoles writes stretches of zeros at even and odd offsets into a stage that is
// a directory, beyond 2 GiB, the limit of a file with 32-bit offsets.
func TestWrittenZerosStayHoles(t *testing.T) {
	const room = 64 * pageBytes
	piece := make([]byte, room)
	copy(piece, noise(9, 10))
	copy(piece[9*pageBytes-1:], noise(10, pageBytes+2))
	copy(piece[room-3:], noise(11, 3))
	for _, off := range []int64{0, 1, 1<<31 - 10*pageBytes, 5_000_000_000} {
		s := begin(t, filepath.Join(t.TempDir(), "out"), true)
		f, err := s.CreateLike("a/f", off+room, fileio.Like{Sparse: true})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := fileio.WriteNonzero(f, piece, off); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, room)
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, piece) {
			t.Errorf("at %d: the file does not hold what was written: %v", off, err)
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if want := int64(room / 2 / 512); st.Blocks > want {
			t.Errorf("at %d: the file takes %d blocks on the disk, want at most %d", off, st.Blocks, want)
		}
	}
}

// TestHolesReplaceWhatWasThere: a hole of the source becomes zeros over other bytes of the copy.
func TestHolesReplaceWhatWasThere(t *testing.T) {
	dir := t.TempDir()
	in, err := os.Create(filepath.Join(dir, "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	const n = 64 * pageBytes
	data := noise(7, pageBytes)
	if _, err := in.WriteAt(data, n/2); err != nil {
		t.Fatal(err)
	}
	if err := in.Truncate(n); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1, pageBytes, 2*n - 5} {
		out, err := os.Create(filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		ground := noise(8, 2*n)
		if _, err := out.Write(ground); err != nil {
			t.Fatal(err)
		}
		if err := fileio.CopyRange(out, off, in, 0, n); err != nil {
			t.Fatal(err)
		}
		want := append(ground, make([]byte, max(0, off+n-2*n))...)
		clear(want[off : off+n])
		copy(want[off+n/2:], data)
		got, err := os.ReadFile(filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("CopyRange to %d: the file is not what was there with the range replaced", off)
		}
	}
}
