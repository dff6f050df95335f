package pickle

import (
	"archive/zip"
	"encoding/binary"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/archive"
	"github.com/loratool/loratool/internal/fault"
)

// readZip reads the archive that torch has written since 1.6: NAME/data.pkl, NAME/data/KEY for each
// storage, and since torch 2.1 NAME/byteorder. Entries are stored, not compressed. readZip locates
// every storage and returns the value of the pickle. It compares the checksum of the pickle; that
// of a storage is compared when its first value is read.
func (f *File) readZip() (any, error) {
	z, err := archive.Open(f.r, f.size)
	if err != nil {
		return nil, err
	}
	var root string
	found := false
	for _, e := range z.Entries {
		if dir, name := path.Split(e.Name); name == "data.pkl" && !found {
			root, found = dir, true
		}
	}
	switch {
	case !found:
		return nil, fault.New(fault.Unsupported, "the zip archive has no data.pkl, so torch.save did not write it").
			WithHint("if the weights are inside, unpack the archive first")
	case z.Entry(root+"constants.pkl") != nil:
		return nil, fault.New(fault.Unsupported, "this is a TorchScript archive: a program with its weights").
			WithHint("load it with torch.jit.load and save its state_dict() as safetensors")
	}
	f.Unchecked = !slices.ContainsFunc(z.Entries, func(e *archive.Entry) bool { return e.CRC32 != 0 })
	if e := z.Entry(root + "byteorder"); e != nil {
		order, err := f.small(z, e, 16)
		if err != nil {
			return nil, err
		}
		if got := strings.TrimSpace(string(order)); got != "little" {
			return nil, fault.New(fault.Unsupported, "the values are stored with byteorder %q, want little", got).
				WithHint("load it with torch on any machine and save it as safetensors, which is always little-endian")
		}
	}
	program, err := f.locate(z, z.Entry(root+"data.pkl"))
	if err != nil {
		return nil, err
	}
	if err := program.Check(f.r); err != nil {
		return nil, err
	}
	m := newMachine(f.r, program.Off, program.NBytes)
	m.load = func(id tuple) (*storage, error) { return f.storage(m, id) }
	top, err := m.run()
	if err != nil {
		return nil, err
	}
	for _, s := range f.storages {
		e := z.Entry(root + "data/" + s.key)
		if e == nil {
			return nil, fault.New(fault.Corrupt, "the archive has no entry data/%s, which holds a storage of %d elements", s.key, s.n)
		}
		if s.Extent, err = f.locate(z, e); err != nil {
			return nil, err
		}
	}
	return top, nil
}

// locate returns the position of the bytes of a stored entry.
func (f *File) locate(z *archive.Archive, e *archive.Entry) (archive.Extent, error) {
	if e.Method != zip.Store {
		return archive.Extent{}, fault.New(fault.Unsupported, "entry %q of the archive is compressed, but torch stores its entries", e.Name).
			WithHint("unpack the archive and pack it again without compression (zip -0)")
	}
	x, err := z.Locate(e)
	if f.Unchecked {
		x.Entry = ""
	}
	return x, err
}

// small reads the first bytes of an entry, at most limit, after checking the checksum of the whole
// entry.
func (f *File) small(z *archive.Archive, e *archive.Entry, limit int64) ([]byte, error) {
	x, err := f.locate(z, e)
	if err != nil {
		return nil, err
	}
	if err := x.Check(f.r); err != nil {
		return nil, err
	}
	p := make([]byte, min(limit, x.NBytes))
	_, err = io.ReadFull(io.NewSectionReader(f.r, x.Off, x.NBytes), p)
	return p, err
}

// The beginning of the container used before torch 1.6: a magic number and a version, each in its
// own pickle.
const (
	legacyMagic   = long("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
	legacyVersion = int64(1001)
)

// readLegacy reads that container: the magic number, the version, facts about the machine, the
// value, the keys of the storages, and for each key the number of elements and their bytes.
func (f *File) readLegacy() (any, error) {
	m := newMachine(f.r, 0, f.size)
	m.load = func(id tuple) (*storage, error) { return f.storage(m, id) }
	var parts [5]any
	for i := range parts {
		var err error
		if parts[i], err = m.run(); err != nil {
			return nil, err
		}
		switch {
		case i == 0 && parts[i] != legacyMagic:
			return nil, fault.New(fault.Unsupported, "torch.save did not write this pickle: it holds %s", describe(parts[i])).WithHint("%s", hintResave)
		case i == 1 && parts[i] != legacyVersion:
			return nil, fault.New(fault.Unsupported, "the torch file has version %s, want %d", describe(parts[i]), legacyVersion).WithHint("%s", hintResave)
		}
	}
	if facts, ok := parts[2].(*dict); ok {
		for _, e := range facts.entries {
			if e.key == "little_endian" && e.value != true {
				return nil, fault.New(fault.Unsupported, "the values are stored big-endian").
					WithHint("load it with torch and save it as safetensors, which is always little-endian")
			}
		}
	}
	keys, ok := parts[4].(*list)
	if !ok {
		return nil, m.corrupt("the keys of the storages are %s, want a list", describe(parts[4]))
	}
	return parts[3], f.locateLegacy(m, keys.items)
}

// locateLegacy finds the storages, which follow in the order of their keys.
func (f *File) locateLegacy(m *machine, keys []any) error {
	at := m.at
	for i, key := range keys {
		name, _ := key.(string)
		s := f.byKey[name]
		if s == nil || s.Off != 0 {
			return m.corrupt("key %d of the storages, %q, is repeated, or no tensor uses it", i, name)
		}
		if f.size-at < 8 {
			return fault.New(fault.Truncated, "storage %q begins here, but only %d bytes are left", name, f.size-at).At(at).
				WithHint("the file was not written or downloaded completely; fetch it again")
		}
		var count [8]byte
		if _, err := io.ReadFull(io.NewSectionReader(f.r, at, 8), count[:]); err != nil {
			return err
		}
		if n := binary.LittleEndian.Uint64(count[:]); n != uint64(s.n) {
			return fault.New(fault.Corrupt, "storage %q has %d elements, the pickle says %d", name, n, s.n).At(at)
		}
		at += 8
		s.Off, s.NBytes = at, min(s.n*s.elementBytes(), f.size-at)
		at += s.NBytes
	}
	for _, s := range f.storages {
		if s.Off == 0 {
			return fault.New(fault.Truncated, "the file lacks storage %q of %d elements", s.key, s.n)
		}
	}
	return nil
}
