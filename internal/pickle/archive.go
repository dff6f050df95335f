package pickle

import (
	"archive/zip"
	"errors"
	"hash/crc32"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fault"
)

// readZip reads the archive of torch 1.6 and later: NAME/data.pkl, NAME/data/KEY for each storage,
// NAME/byteorder since torch 2.1; entries are stored, not compressed. It returns the value of the
// pickle, and has found every storage. The checksums of the pickle are compared here, that of a
// storage when the first of its values is read.
func (f *File) readZip() (any, error) {
	z, err := zip.NewReader(f.r, f.size)
	if err != nil {
		return nil, fault.New(fault.Truncated, "not a whole zip archive: %v", err).
			WithHint("the file was not written or downloaded completely; fetch it again")
	}
	entries := make(map[string]*zip.File, len(z.File))
	var root string
	found := false
	for _, e := range z.File {
		if _, dup := entries[e.Name]; dup {
			return nil, fault.New(fault.Corrupt, "the archive has two entries %q", e.Name)
		}
		entries[e.Name] = e
		if dir, name := path.Split(e.Name); name == "data.pkl" && !found {
			root, found = dir, true
		}
	}
	switch {
	case !found:
		return nil, fault.New(fault.Unsupported, "a zip archive without data.pkl: torch.save did not write it").
			WithHint("if the adapter is inside, unpack the archive first")
	case entries[root+"constants.pkl"] != nil:
		return nil, fault.New(fault.Unsupported, "this is a TorchScript archive, a program with its weights").
			WithHint("load it with torch.jit.load and save its state_dict() as safetensors")
	}
	f.Unchecked = !slices.ContainsFunc(z.File, func(e *zip.File) bool { return e.CRC32 != 0 })
	if e := entries[root+"byteorder"]; e != nil {
		order, err := f.small(e, 16)
		if err != nil {
			return nil, err
		}
		if got := strings.TrimSpace(string(order)); got != "little" {
			return nil, fault.New(fault.Unsupported, "the values are stored with byteorder %q, want little", got).
				WithHint("load it with torch on any machine and save it as safetensors, which is always little-endian")
		}
	}
	program, err := f.locate(entries[root+"data.pkl"])
	if err != nil {
		return nil, err
	}
	if err := program.check(f.r); err != nil {
		return nil, err
	}
	m := newMachine(f.r, program.off, program.nBytes)
	m.load = func(id tuple) (*storage, error) { return f.storage(m, id) }
	top, err := m.run()
	if err != nil {
		return nil, err
	}
	for _, s := range f.storages {
		e := entries[root+"data/"+s.key]
		if e == nil {
			return nil, fault.New(fault.Corrupt, "the archive has no entry data/%s, which holds a storage of %d elements", s.key, s.n)
		}
		if s.extent, err = f.locate(e); err != nil {
			return nil, err
		}
	}
	return top, nil
}

// locate returns where the bytes of a stored entry lie.
func (f *File) locate(e *zip.File) (x extent, err error) {
	if e.Method != zip.Store {
		return x, fault.New(fault.Unsupported, "the entry %q of the archive is compressed, and torch stores its entries", e.Name).
			WithHint("unpack the archive and pack it again without compression: zip -0")
	}
	off, err := e.DataOffset()
	if err != nil || e.UncompressedSize64 != e.CompressedSize64 || off > f.size || e.UncompressedSize64 > uint64(f.size-off) {
		return x, fault.New(fault.Corrupt, "the entry %q of the archive does not lie in the file", e.Name)
	}
	x = extent{off: off, nBytes: int64(e.UncompressedSize64)}
	if !f.Unchecked {
		x.entry, x.crc = e.Name, e.CRC32
	}
	return x, nil
}

// small reads the first bytes of an entry, at most limit, after it has compared the checksum of
// all.
func (f *File) small(e *zip.File, limit int64) ([]byte, error) {
	x, err := f.locate(e)
	if err != nil {
		return nil, err
	}
	if err := x.check(f.r); err != nil {
		return nil, err
	}
	p := make([]byte, min(limit, x.nBytes))
	_, err = io.ReadFull(io.NewSectionReader(f.r, x.off, x.nBytes), p)
	return p, err
}

// extent is a run of bytes of the file; one with the name of an entry has a checksum.
type extent struct {
	off, nBytes int64
	entry       string
	crc         uint32
}

// check compares the checksum of an extent that has one. It reads all of its bytes.
func (x *extent) check(r io.ReaderAt) error {
	if x.entry == "" {
		return nil
	}
	h := crc32.NewIEEE()
	if n, err := io.Copy(h, io.NewSectionReader(r, x.off, x.nBytes)); err != nil || n != x.nBytes {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	if got := h.Sum32(); got != x.crc {
		return fault.New(fault.Corrupt, "the entry %q of the archive has the CRC-32 %08x, and the archive says %08x", x.entry, got, x.crc).At(x.off).
			WithHint("the file was damaged, or edited by a tool that leaves checksums as they are; fetch it again")
	}
	return nil
}
