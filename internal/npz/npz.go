// Package npz reads the arrays of NumPy's archives: a zip file with an entry NAME.npy for each. It
// never runs what an archive holds, and refuses arrays of Python objects, which are pickles.
//
// [Read] checks the directory, the headers of all arrays, and the bytes that these claim, against
// the file. It reads no values. Its memory is bounded by a small multiple of the file's size.
package npz

import (
	"archive/zip"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/archive"
	"github.com/loratool/loratool/internal/fault"
)

// Tensor is one array of a file.
type Tensor struct {
	Name  string // the entry's, without .npy
	DType dtype.Type
	Shape []uint64
	// IsTransposed reports that an array of two dimensions or more is stored with its first
	// dimension fastest (fortran_order).
	IsTransposed bool
}

// File is a checked file.
type File struct {
	Tensors []Tensor // in the order of the archive's directory

	r       io.ReaderAt
	entries []*entry // of the tensors

	mu       sync.Mutex // guards unpacked
	unpacked []*entry   // entries whose values are in memory, the latest last
}

// entry is the place of an array's values.
type entry struct {
	archive.Extent // of the whole entry, as stored
	file           *archive.Entry
	header         int64 // bytes before the values, unpacked

	once    sync.Once
	checked error
	values  []byte // of a compressed entry; nil while they are not in memory
}

const (
	// ext ends the names of entries.
	ext = ".npy"
	// maxExpansion bounds the size of all arrays relative to the file, as for pickles. Factors in
	// which zeros prevail take a tenth of their size when compressed.
	maxExpansion = 16
	// maxUnpacked bounds how many compressed arrays are in memory, for readers that each read one
	// from beginning to end.
	maxUnpacked = 4
	// isEncrypted is a flag of an entry.
	isEncrypted = 1
)

// IsArchive reports whether a zip archive of size bytes holds an array.
func IsArchive(r io.ReaderAt, size int64) bool {
	z, err := zip.NewReader(r, size)
	return err == nil && slices.ContainsFunc(z.File, func(e *zip.File) bool {
		return strings.HasSuffix(e.Name, ext)
	})
}

// Read reads the names, dtypes and shapes of the arrays in a file of size bytes. Errors are a
// *fault.Error without a path, or come from r or ctx.
func Read(ctx context.Context, r io.ReaderAt, size int64) (*File, error) {
	z, err := archive.Open(r, size)
	if err != nil {
		return nil, err
	}
	f := &File{r: r}
	for _, e := range z.Entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := f.add(z, e); err != nil {
			return nil, err
		}
	}
	return f, f.check(size)
}

// add reads the header of an entry.
func (f *File) add(z *archive.Archive, file *archive.Entry) error {
	name, ok := strings.CutSuffix(file.Name, ext)
	switch {
	case !ok:
		return fault.New(fault.Unsupported, "entry %q of the archive is no array (.npy)", file.Name).
			WithHint("save the arrays alone, with numpy.savez")
	case file.Flags&isEncrypted != 0:
		return fault.New(fault.Unsupported, "entry %q of the archive is encrypted", file.Name)
	case file.Method != zip.Store && file.Method != zip.Deflate:
		return fault.New(fault.Unsupported, "entry %q of the archive is compressed by method %d, want 0 or 8",
			file.Name, file.Method).WithHint("save the arrays with numpy.savez or savez_compressed")
	}
	x, err := z.Locate(file)
	if err != nil {
		return err
	}
	e := &entry{Extent: x, file: file}
	unpacked, err := f.open(e)
	if err != nil {
		return err
	}
	defer unpacked.Close()
	h, err := readHeader(unpacked, file.Name, file.UncompressedSize64)
	if err != nil {
		return err
	}
	e.header = h.nBytes
	f.entries = append(f.entries, e)
	f.Tensors = append(f.Tensors, Tensor{
		Name: name, DType: h.dtype, Shape: h.shape, IsTransposed: h.isFortran && len(h.shape) > 1,
	})
	return nil
}

// open returns the unpacked bytes of an entry, unchecked.
func (f *File) open(e *entry) (io.ReadCloser, error) {
	if e.file.Method == zip.Store {
		return io.NopCloser(io.NewSectionReader(f.r, e.Off, e.NBytes)), nil
	}
	packed, err := e.file.Open()
	return packed, corrupt(err, e)
}

// check checks that no two entries share bytes, and how large all arrays are together.
func (f *File) check(size int64) error {
	byOff := slices.Clone(f.entries)
	slices.SortStableFunc(byOff, func(a, b *entry) int { return int(min(1, max(-1, a.Off-b.Off))) })
	left := uint64(size) * maxExpansion
	for i, e := range byOff {
		if i > 0 && e.Off < byOff[i-1].Off+byOff[i-1].NBytes {
			return fault.New(fault.Corrupt, "the entries %q and %q of the archive share bytes",
				byOff[i-1].Entry, e.Entry).At(e.Off)
		}
		n := e.file.UncompressedSize64
		if n > left {
			return fault.New(fault.Limit, "with entry %q of %d bytes, all arrays are more than %d times as "+
				"large as the file", e.Entry, n, maxExpansion).
				WithHint("if the arrays are factors, save them again with numpy.savez, which does not compress")
		}
		left -= n
	}
	return nil
}

// ReadAt fills p with the values of tensor i from byte offset off, little-endian, in the order of
// the file. Several goroutines may call it at once. The first read of an array checks the checksum
// of its entry. A compressed array is unpacked in memory on its first read. It stays there until
// its last byte is read, or until several other arrays have been unpacked.
func (f *File) ReadAt(p []byte, i int, off int64) error {
	e := f.entries[i]
	if len(p) == 0 {
		return nil
	}
	if e.file.Method == zip.Store {
		e.once.Do(func() { e.checked = e.Check(f.r) })
		if e.checked != nil {
			return e.checked
		}
		_, err := io.ReadFull(io.NewSectionReader(f.r, e.Off+e.header+off, int64(len(p))), p)
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.values == nil {
		if err := f.unpack(e); err != nil {
			return err
		}
	}
	copy(p, e.values[off:])
	if off+int64(len(p)) == int64(len(e.values)) {
		f.drop(slices.Index(f.unpacked, e))
	}
	return nil
}

// unpack reads the values of a compressed entry and compares the checksum.
func (f *File) unpack(e *entry) error {
	if len(f.unpacked) == maxUnpacked {
		f.drop(0)
	}
	in, err := f.open(e)
	if err != nil {
		return err
	}
	defer in.Close()
	h := crc32.NewIEEE()
	from := io.TeeReader(in, h)
	if _, err := io.CopyN(io.Discard, from, e.header); err != nil {
		return corrupt(err, e)
	}
	values := make([]byte, int64(e.file.UncompressedSize64)-e.header)
	if _, err := io.ReadFull(from, values); err != nil {
		return corrupt(err, e)
	}
	if got := h.Sum32(); got != e.CRC {
		return archive.NewMismatch(e.Entry, got, e.CRC, e.Off)
	}
	if _, err := in.Read(make([]byte, 1)); err != io.EOF { // zip refuses more than it claims
		return corrupt(err, e)
	}
	e.values = values
	f.unpacked = append(f.unpacked, e)
	return nil
}

// drop frees the values of an unpacked entry.
func (f *File) drop(at int) {
	f.unpacked[at].values = nil
	f.unpacked = slices.Delete(f.unpacked, at, at+1)
}

// corrupt gives an error of a decompressor its kind.
func corrupt(err error, e *entry) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return fault.New(fault.Corrupt, "entry %q of the archive cannot be decompressed: %v", e.Entry, err).
		At(e.Off).WithHint("the file was damaged; fetch it again")
}
