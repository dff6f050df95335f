package pickle_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/pickle"
)

// values returns the values of all tensors of a file, one after the other.
func values(f *pickle.File) ([]byte, error) {
	var all []byte
	for i := range f.Tensors {
		p := make([]byte, f.Tensors[i].NBytes())
		if err := f.ReadAt(p, i, 0); err != nil {
			return nil, err
		}
		all = append(all, p...)
	}
	return all, nil
}

// TestNoByteOfAnArchiveChangesUnseen changes each byte of archives that torch wrote. Reading then
// either fails or gives the same as before.
func TestNoByteOfAnArchiveChangesUnseen(t *testing.T) {
	for _, name := range []string{"plain", "views", "shared"} {
		b := readFile(t, filepath.Join(fixtures, "read", name+".bin"))
		f, err := open(b)
		if err != nil {
			t.Fatal(err)
		}
		want, err := values(f)
		if err != nil {
			t.Fatal(err)
		}
		for at := range b {
			b[at] ^= 1 << (at % 8)
			f, err := open(b)
			if err == nil {
				var got []byte
				if got, err = values(f); err == nil && (!bytes.Equal(got, want) || f.Unchecked) {
					t.Errorf("%s: byte %d is changed, and nobody sees it", name, at)
				}
			}
			var input *fault.Error
			if err != nil && !errors.As(err, &input) {
				t.Errorf("%s: byte %d is changed: %v, want an error of a kind", name, at, err)
			}
			b[at] ^= 1 << (at % 8)
		}
	}
}

// TestAnArchiveWithoutChecksumsIsRead: on request, torch writes 0 for all checksums. A single 0
// among others is a real checksum.
func TestAnArchiveWithoutChecksumsIsRead(t *testing.T) {
	f, err := open(readFile(t, filepath.Join(fixtures, "read/no-checksums.bin")))
	if err != nil || !f.Unchecked {
		t.Errorf("Read of an archive without checksums: %v, Unchecked %v", err, err == nil && f.Unchecked)
	}
	b := readFile(t, filepath.Join(fixtures, "read/plain.bin"))
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(z.File, func(e *zip.File) bool { return e.Name == "archive/data/0" })
	if at < 0 {
		t.Fatal("the fixture has no entry archive/data/0")
	}
	crc := binary.LittleEndian.AppendUint32(nil, z.File[at].CRC32)
	if n := bytes.Count(b, crc); n != 2 { // in the descriptor behind the entry, and in the directory
		t.Fatalf("the checksum is there %d times, want 2", n)
	}
	b = bytes.ReplaceAll(b, crc, make([]byte, 4))
	if f, err = open(b); err != nil {
		t.Fatal(err)
	}
	if _, err := values(f); !errors.Is(err, fault.Corrupt) {
		t.Errorf("an archive with one checksum of 0: ReadAt = %v, want an error", err)
	}
}

// TestZip64 reads an archive with a storage longer than 4 GiB, followed by the other storages.
func TestZip64(t *testing.T) {
	b := readFile(t, filepath.Join(fixtures, "read/plain.bin"))
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	f, err := open(b)
	if err != nil {
		t.Fatal(err)
	}
	want, err := values(f)
	if err != nil {
		t.Fatal(err)
	}
	var large sparse
	w := zip.NewWriter(&large)
	const nZeros = 5 << 10
	size := uint64(nZeros * len(zeros))
	entry, err := w.CreateRaw(&zip.FileHeader{Name: "archive/data/99", Method: zip.Store, CompressedSize64: size, UncompressedSize64: size})
	if err != nil {
		t.Fatal(err)
	}
	for range nZeros {
		if _, err := entry.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range z.File {
		if err := w.Copy(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = pickle.Read(&large, large.size); err != nil {
		t.Fatal(err)
	}
	if got, err := values(f); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt behind 5 GiB: %v, equal to what lies at the start: %v", err, bytes.Equal(got, want))
	}
}

// zeros returns the bytes that a sparse file does not store.
var zeros = make([]byte, 1<<20)

// sparse is a file in memory that stores every byte written to it except zeros.
type sparse struct {
	size   int64
	pieces []piece // in order
}

type piece struct {
	off   int64
	bytes []byte
}

func (s *sparse) Write(p []byte) (int, error) {
	if &p[0] != &zeros[0] {
		s.pieces = append(s.pieces, piece{s.size, slices.Clone(p)})
	}
	s.size += int64(len(p))
	return len(p), nil
}

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), s.size-off)
	if n <= 0 {
		return 0, io.EOF
	}
	clear(p[:n])
	for _, x := range s.pieces {
		if from := max(off, x.off); from < min(off+n, x.off+int64(len(x.bytes))) {
			copy(p[from-off:n], x.bytes[from-x.off:])
		}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
