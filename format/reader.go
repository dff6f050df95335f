package format

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/parallel"
)

// ReaderOptions sets the limits of a reader. The zero value has the specification's defaults
// (section 16).
type ReaderOptions struct {
	// MaxManifestBytes bounds the manifest. 0 means 16 MiB. Version 1 of the format allows no more
	// than 64 MiB.
	MaxManifestBytes int64
	// MaxRawBytes bounds the bytes of all tensors and attachments together; 0 means 64 GiB.
	MaxRawBytes int64
	// Workers is the number of chunks decoded at once; 0 means one per processor. A Reader keeps
	// that many decoded chunks, at least 2.
	Workers int
	// FileID is the file id that the file must have, as 64 hex digits, or "". With an id, the
	// reader checks the SHA-256 of every chunk it reads, so every byte it returns belongs to the
	// file with that id.
	FileID string
}

const (
	defaultManifestBytes = 16 << 20
	defaultRawBytes      = 64 << 30
)

// hintManifest tells how to raise the default limit.
const hintManifest = "set ReaderOptions.MaxManifestBytes=64MiB, the most that version 1 of the format allows"

func (o ReaderOptions) manifestLimit() int64 { return manifestLimit(o.MaxManifestBytes) }

// manifestLimit returns the limit that an option sets.
func manifestLimit(option int64) int64 {
	if option > 0 {
		return min(option, maxManifestBytes)
	}
	return defaultManifestBytes
}

func (o ReaderOptions) rawLimit() int64 {
	if o.MaxRawBytes > 0 {
		return o.MaxRawBytes
	}
	return defaultRawBytes
}

// prologue is everything the head of a file says.
type prologue struct {
	head     head
	bytes    int64 // length of the head
	digest   sum   // of the head
	manifest *Manifest
	codings  []coding
	plan     *plan
}

// manifestText decodes the manifest. p is the whole head. It allocates only after walking the
// frame.
func manifestText(h head, p []byte) (string, error) {
	frame := p[headBytes:]
	if err := walkFrame(frame, headBytes, int64(h.manifestBytes)); err != nil {
		return "", about(err, "manifest")
	}
	text := make([]byte, h.manifestBytes)
	d := newDecoder(1)
	defer d.close()
	if err := d.decode(text, frame, headBytes); err != nil {
		return "", about(err, "manifest")
	}
	return string(text), nil
}

// parsePrologue decodes and checks the manifest. p is the whole head.
func parsePrologue(h head, p []byte, opts ReaderOptions) (*prologue, error) {
	text, err := manifestText(h, p)
	if err != nil {
		return nil, err
	}
	m, codings, err := parseManifest(text, h.minor > knownMembers)
	if err != nil {
		return nil, err
	}
	if err := checkShared(m, h.critical); err != nil {
		return nil, err
	}
	plan, err := newPlan(m, codings, h.chunkLog2, opts.rawLimit())
	if err != nil {
		return nil, err
	}
	if h.minor > minorVersion {
		m.Notes = append(m.Notes, fmt.Sprintf("the file has version %d.%d, this reader knows %d.%d", majorVersion, h.minor, majorVersion, minorVersion))
	}
	for bit := range 32 {
		if h.ignorable>>bit&1 != 0 {
			m.Notes = append(m.Notes, fmt.Sprintf("ignorable feature %d is unknown to this reader", bit))
		}
	}
	return &prologue{head: h, bytes: int64(len(p)), digest: sha256.Sum256(p), manifest: m, codings: codings, plan: plan}, nil
}

// Reader reads a .lora file by position. It is a Source; several goroutines may call its methods at
// once.
type Reader struct {
	r      io.ReaderAt
	size   int64
	pinned bool
	*prologue
	tail      *tail // after index
	contentID string
	fileID    string
	cache     *cache
	closer    io.Closer
	identity  fileio.Identity // of the file that Open opened
}

// NewReader opens a .lora file of size bytes. It reads the first 16 KiB, the rest of the head if
// the head is longer, and the digests and the seek table at the end: two or three requests, and one
// if the file has at most 16 KiB. It checks everything that the specification lists under "open"
// (section 15), which leaves out the chunks. The Reader uses r until Close, only through ReadAt.
//
// It needs memory for the manifest and its records, 40 bytes per chunk and, for reading, two chunks
// per worker.
func NewReader(r io.ReaderAt, size int64, opts ReaderOptions) (*Reader, error) {
	start, pro, err := readPrologue(r, size, opts)
	if err != nil {
		return nil, err
	}
	t, err := readTail(r, size, start, pro)
	if err != nil {
		return nil, err
	}
	if errs, _ := t.check(tailOf(pro, size)); len(errs) > 0 {
		return nil, errs[0]
	}
	id := sha256.New()
	id.Write(start[:pro.bytes])
	id.Write(t.buf)
	x := &Reader{
		r:         r,
		size:      size,
		pinned:    opts.FileID != "",
		prologue:  pro,
		contentID: hex.EncodeToString(t.contentID()),
		fileID:    hex.EncodeToString(id.Sum(nil)),
		tail:      t,
	}
	if x.pinned && x.fileID != opts.FileID {
		return nil, otherFile(x.fileID, opts.FileID)
	}
	t.index()
	x.cache = newCache(x, max(2, parallel.Workers(opts.Workers)))
	return x, nil
}

// Open opens a file with the default options. The caller closes the Reader.
func Open(path string) (*Reader, error) { return OpenWith(path, ReaderOptions{}) }

// OpenWith opens a file. The caller closes the Reader.
func OpenWith(path string, opts ReaderOptions) (*Reader, error) {
	f, size, err := fileio.Open(path)
	if err != nil {
		return nil, err
	}
	x, err := openFile(f, size, opts)
	if err != nil {
		return nil, errors.Join(fault.InFile(err, path), f.Close())
	}
	return x, nil
}

func openFile(f *os.File, size int64, opts ReaderOptions) (*Reader, error) {
	id, err := fileio.IdentityOf(f)
	if err != nil {
		return nil, err
	}
	x, err := NewReader(f, size, opts)
	if err != nil {
		return nil, err
	}
	after, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if after.Size() != size {
		return nil, fmt.Errorf("%s changed from %d to %d bytes while it was being opened", f.Name(), size, after.Size())
	}
	x.closer, x.identity = f, id
	return x, nil
}

// readPrologue reads the head. start is the beginning of the file and contains at least the head.
func readPrologue(r io.ReaderAt, size int64, opts ReaderOptions) (start []byte, pro *prologue, err error) {
	start, err = readRange(nil, r, 0, min(size, firstReadBytes))
	if err != nil {
		return nil, nil, err
	}
	h, err := parseHead(start, opts.manifestLimit())
	if err != nil {
		return nil, nil, err
	}
	n := h.frameBytes()
	if n > size {
		return nil, nil, cutOff(io.EOF, size, fmt.Sprintf("inside the head of %d bytes", n))
	}
	if n > int64(len(start)) {
		if start, err = readRange(start, r, int64(len(start)), n); err != nil {
			return nil, nil, err
		}
	}
	pro, err = parsePrologue(h, start[:n], opts)
	return start, pro, err
}

// readTail returns the digests and the seek table. It reads only the bytes that start, the
// beginning of the file, does not have.
func readTail(r io.ReaderAt, size int64, start []byte, pro *prologue) (*tail, error) {
	c := pro.plan.chunks
	off := size - tailLen(c)
	if off < pro.bytes {
		return nil, cutOff(io.EOF, size, fmt.Sprintf("before the digests and the seek table of %d chunks", c))
	}
	t := &tail{buf: make([]byte, 0, size-off), c: c}
	if have := int64(len(start)); off < have {
		t.buf = append(t.buf, start[off:]...)
		off = have
	}
	var err error
	if t.buf, err = readRange(t.buf, r, off, size); err != nil {
		return nil, err
	}
	if le.Uint32(t.buf[len(t.buf)-4:]) != seekEndMagic {
		return nil, broken(1, "the file does not end with a seek table: it was cut off at byte %d, or bytes were appended", size).WithHint(hintRefetch)
	}
	return t, nil
}

func tailOf(pro *prologue, size int64) *expect {
	return &expect{plan: pro.plan, head: pro.bytes, digest: pro.digest, off: size - tailLen(pro.plan.chunks)}
}

// readRange appends the bytes of r from off to end to p, in one request. They exist if the caller
// gave the true size of r.
func readRange(p []byte, r io.ReaderAt, off, end int64) ([]byte, error) {
	p, err := appendN(slices.Grow(p, int(end-off)), io.NewSectionReader(r, off, end-off), end-off)
	if err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("the file ends at byte %d; it was longer when it was opened: %w", off+int64(len(p)), err)
	}
	return p, err
}

// Manifest describes the file: adapters ordered by name, layers by module, tensors as stored.
func (x *Reader) Manifest() *Manifest { return x.manifest }

// ContentID returns the content id that the file claims. Verify checks the claim.
func (x *Reader) ContentID() string { return x.contentID }

// FileID returns the file id. It identifies the bytes of the file, provided that every chunk is
// checked against its digest, as ReaderOptions.FileID and Verify do.
func (x *Reader) FileID() string { return x.fileID }

// ReadBlobAt fills p with the bytes of blob i from offset off; see Source. It reads and decodes
// only the chunks that hold these bytes, neighbouring ones of up to 1 MiB in one request. It checks
// their checksums, and with ReaderOptions.FileID their SHA-256. After an error the content of p is
// undefined. Blob i must exist.
func (x *Reader) ReadBlobAt(p []byte, i int, off int64) error {
	if n := x.plan.blobBytes(i); off < 0 || off > n || int64(len(p)) > n-off {
		return fmt.Errorf("read of %d bytes at offset %d of blob %d, which has %d bytes", len(p), off, i, n)
	}
	if len(p) == 0 {
		return nil
	}
	at := x.plan.blobs[i] + off
	w := &window{last: x.plan.chunkAt(at + int64(len(p)) - 1)}
	for len(p) > 0 {
		k := x.plan.chunkAt(at)
		n, err := x.cache.read(p, k, at-x.plan.chunk(k).off, w)
		if err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// Unchanged returns an error if the file that Open opened is no longer the same: replaced, of
// another size, or written to. For a reader that NewReader made it returns nil.
func (x *Reader) Unchanged() error { return x.identity.Check() }

// Close releases the reader's memory, and closes the file if Open opened it. No method may be
// called afterwards.
func (x *Reader) Close() error {
	x.cache.close()
	if x.closer != nil {
		return x.closer.Close()
	}
	return nil
}

// requestBytes is how many bytes of neighbouring chunks one request reads. A request over a network
// costs as much time as some hundred KiB.
const requestBytes = 1 << 20

// window holds stored bytes of neighbouring chunks that one request has read.
type window struct {
	last int64 // the last chunk that the caller needs
	off  int64 // where buf begins in the file
	buf  []byte
}

// stored appends the stored bytes of chunk i to p. If the caller needs further chunks, it reads
// them in the same request.
func (x *Reader) stored(p []byte, i int64, w *window) ([]byte, error) {
	off, end := x.tail.span(i)
	if have := w.off + int64(len(w.buf)); w.off <= off && end <= have {
		return append(p, w.buf[off-w.off:end-w.off]...), nil
	}
	upTo := end
	for k := i + 1; k <= w.last; k++ {
		_, next := x.tail.span(k)
		if next-off > requestBytes {
			break
		}
		upTo = next
	}
	if upTo == end {
		return readRange(p, x.r, off, end)
	}
	var err error
	if w.buf, err = readRange(w.buf[:0], x.r, off, upTo); err != nil {
		return p, err
	}
	w.off = off
	return append(p, w.buf[:end-off]...), nil
}

// readChunk reads, decodes and checks chunk i into s.
func (x *Reader) readChunk(s *room, d *decoder, i int64, w *window) error {
	off, _ := x.tail.span(i)
	var err error
	if s.stored, err = x.stored(s.stored[:0], i, w); err != nil {
		return err
	}
	if x.pinned {
		if got := sha256.Sum256(s.stored); string(got[:]) != string(x.tail.digest(i)) {
			return badDigest(i, off, got, x.tail.digest(i))
		}
	}
	return s.decode(d, x.plan.chunk(i), i, off)
}

func badDigest(i, off int64, got sum, want []byte) error {
	return broken(61, "chunk %d has SHA-256 %x, the digests frame says %x", i, got, want).At(off)
}

func otherFile(got, want string) error {
	return fault.New(ErrMismatch, "the file has id %s, want %s", got, want)
}

// room is memory for one chunk. Its stored bytes become coded bytes and then raw bytes, in two
// buffers.
type room struct {
	stored []byte
	raw    []byte
	spare  []byte
}

// grow allocates memory for chunks of up to n raw bytes.
func (s *room) grow(n int64) {
	if int64(cap(s.stored)) < bound(n) {
		s.stored = make([]byte, 0, bound(n))
		s.spare = make([]byte, 0, bound(n))
	}
}

// decode decodes the stored bytes of chunk i, which begin at off in the file, into raw bytes.
func (s *room) decode(d *decoder, c chunk, i, off int64) error {
	coded := s.spare[:c.n]
	if err := d.decode(coded, s.stored, off); err != nil {
		return about(err, fmt.Sprintf("chunk %d", i))
	}
	if c.coding == planes {
		s.raw = s.stored[:c.n]
		join(s.raw, coded, c.dtype.Size())
	} else {
		s.raw, s.spare, s.stored = coded, s.stored, coded
	}
	return nil
}
