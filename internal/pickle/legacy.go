package pickle

import (
	"encoding/binary"
	"io"

	"github.com/loratool/loratool/internal/fault"
)

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
			return nil, fault.New(fault.Unsupported, "the torch file has version %v, want %d", parts[i], legacyVersion).WithHint("%s", hintResave)
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
		if s == nil || s.off != 0 {
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
		s.off, s.nBytes = at, min(s.n*s.elementBytes(), f.size-at)
		at += s.nBytes
	}
	for _, s := range f.storages {
		if s.off == 0 {
			return fault.New(fault.Truncated, "the file lacks storage %q of %d elements", s.key, s.n)
		}
	}
	return nil
}
