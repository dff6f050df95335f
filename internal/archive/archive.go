// Package archive finds the bytes of entries in zip archives that hold arrays, such as those of
// torch.save and of NumPy. It is stricter than archive/zip: no two entries have one name, and each
// lies within the file.
package archive

import (
	"archive/zip"
	"errors"
	"hash/crc32"
	"io"

	"github.com/loratool/loratool/internal/fault"
)

// Entry is an entry of an archive.
type Entry = zip.File

// Archive lists the entries of a zip archive.
type Archive struct {
	Entries []*Entry // in the order of the archive's directory

	r      io.ReaderAt
	size   int64
	byName map[string]*Entry
}

// Open reads the directory of an archive of size bytes.
func Open(r io.ReaderAt, size int64) (*Archive, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, fault.New(fault.Truncated, "not a complete zip archive: %v", err).
			WithHint("the file was not written or downloaded completely; fetch it again")
	}
	a := &Archive{Entries: z.File, r: r, size: size, byName: make(map[string]*Entry, len(z.File))}
	for _, e := range z.File {
		if a.byName[e.Name] != nil {
			return nil, fault.New(fault.Corrupt, "the archive has two entries %q", e.Name)
		}
		a.byName[e.Name] = e
	}
	return a, nil
}

// Entry returns the entry called name, or nil.
func (a *Archive) Entry(name string) *Entry { return a.byName[name] }

// Locate returns the range of bytes that an entry takes in the file, as they are stored there. The
// checksum of an entry that is not compressed is that of the range.
func (a *Archive) Locate(e *Entry) (x Extent, err error) {
	off, err := e.DataOffset()
	isOutside := off > a.size || e.CompressedSize64 > uint64(a.size-off)
	if err != nil || isOutside || e.Method == zip.Store && e.UncompressedSize64 != e.CompressedSize64 {
		return x, fault.New(fault.Corrupt, "entry %q of the archive lies outside the file", e.Name)
	}
	return Extent{Off: off, NBytes: int64(e.CompressedSize64), Entry: e.Name, CRC: e.CRC32}, nil
}

// Extent is a range of bytes in a file. It has a checksum if it has the name of an entry.
type Extent struct {
	Off, NBytes int64
	Entry       string
	CRC         uint32
}

// Check compares the checksum of an extent, if it has one. It reads all its bytes.
func (x *Extent) Check(r io.ReaderAt) error {
	if x.Entry == "" {
		return nil
	}
	h := crc32.NewIEEE()
	if n, err := io.Copy(h, io.NewSectionReader(r, x.Off, x.NBytes)); err != nil || n != x.NBytes {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	if got := h.Sum32(); got != x.CRC {
		return NewMismatch(x.Entry, got, x.CRC, x.Off)
	}
	return nil
}

// NewMismatch returns the error for an entry whose bytes have another checksum than its archive
// says.
func NewMismatch(entry string, got, want uint32, off int64) error {
	return fault.New(fault.Corrupt, "entry %q of the archive has CRC-32 %08x, the archive says %08x",
		entry, got, want).At(off).
		WithHint("the file was damaged, or edited by a program that does not update checksums; fetch it again")
}
