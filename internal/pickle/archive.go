package pickle

import (
	"archive/zip"
	"io"
	"path"
	"strings"

	"github.com/loratool/loratool/internal/fault"
)

// readZip reads the archive of torch 1.6 and later: NAME/data.pkl, NAME/data/KEY for each storage, NAME/byteorder since
// torch 2.1; entries are stored, not compressed. It returns the value of the pickle, and has found every storage. The
// archive's checksums are not compared: torch can be told to write none (torch.serialization.set_crc32_options), and values
// are read in parts.
func (f *File) readZip() (any, error) {
	z, err := zip.NewReader(f.r, f.size)
	if err != nil {
		return nil, fault.New(fault.Truncated, "not a whole zip archive: %v", err).
			WithHint("the file was not written or not downloaded whole; fetch it again")
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
	if e := entries[root+"byteorder"]; e != nil {
		order, err := content(e, 16)
		if err != nil {
			return nil, err
		}
		if got := strings.TrimSpace(string(order)); got != "little" {
			return nil, fault.New(fault.Unsupported, "the values are stored with byteorder %q, want little", got).
				WithHint("load it with torch on any machine and save it as safetensors, which is always little-endian")
		}
	}
	off, n, err := f.locate(entries[root+"data.pkl"])
	if err != nil {
		return nil, err
	}
	m := newMachine(f.r, off, n)
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
		if s.off, s.nBytes, err = f.locate(e); err != nil {
			return nil, err
		}
	}
	return top, nil
}

// locate returns where the bytes of a stored entry lie.
func (f *File) locate(e *zip.File) (off, n int64, err error) {
	if e.Method != zip.Store {
		return 0, 0, fault.New(fault.Unsupported, "the entry %q of the archive is compressed, and torch stores its entries", e.Name).
			WithHint("unpack the archive and pack it again without compression: zip -0")
	}
	off, err = e.DataOffset()
	if err != nil || e.UncompressedSize64 != e.CompressedSize64 || off > f.size || e.UncompressedSize64 > uint64(f.size-off) {
		return 0, 0, fault.New(fault.Corrupt, "the entry %q of the archive does not lie in the file", e.Name)
	}
	return off, int64(e.UncompressedSize64), nil
}

// content reads a small entry.
func content(e *zip.File, limit int64) ([]byte, error) {
	r, err := e.Open()
	if err != nil {
		return nil, fault.New(fault.Corrupt, "the entry %q of the archive: %v", e.Name, err)
	}
	defer r.Close()
	p, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		return nil, fault.New(fault.Corrupt, "the entry %q of the archive: %v", e.Name, err)
	}
	return p, nil
}
