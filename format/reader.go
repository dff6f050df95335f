package format

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/parallel"
)

// ReaderOptions sets the limits of a reader. The zero value has the defaults of the specification
// (section 16).
type ReaderOptions struct {
	// MaxManifestBytes bounds the manifest; 0 means 16 MiB, and more than 64 MiB is no file of
	// version 1.
	MaxManifestBytes int64
	// MaxRawBytes bounds the bytes of all tensors and attachments together; 0 means 64 GiB.
	MaxRawBytes int64
	// Workers is the number of chunks that are decoded at once; 0 means one per processor. A Reader
	// keeps as many decoded chunks, at least 2.
	Workers int
	// FileID, when not empty, is the file id that the file must have, as 64 hex digits. Every chunk
	// that is read is then held against its digest, and so against the id.
	FileID string
}

const (
	defaultManifestBytes = 16 << 20
	defaultRawBytes      = 64 << 30
)

// hintManifest is the way past a default limit.
const hintManifest = "ReaderOptions.MaxManifestBytes=64MiB allows what the format does; with a larger manifest the file is none of version 1"

func (o ReaderOptions) manifestLimit() int64 { return manifestLimit(o.MaxManifestBytes) }

// manifestLimit is the limit that an option sets.
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

// prologue holds the fields from the head of a file.
type prologue struct {
	head     head
	bytes    int64 // length of the head
	digest   sum   // of the head
	manifest *Manifest
	codings  []coding
	plan     *plan
}

// manifestText decodes the manifest; p is the whole head. Memory is taken when the frame has been
// walked.
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

// parsePrologue decodes and proves the manifest; p is the whole head.
func parsePrologue(h head, p []byte, opts ReaderOptions) (*prologue, error) {
	text, err := manifestText(h, p)
	if err != nil {
		return nil, err
	}
	m, codings, err := parseManifest(text, h.minor > minorVersion)
	if err != nil {
		return nil, err
	}
	plan, err := newPlan(m, codings, h.chunkLog2, opts.rawLimit())
	if err != nil {
		return nil, err
	}
	if h.minor > draftVersion {
		m.Notes = append(m.Notes, fmt.Sprintf("version %d.%d, this reader knows %d.%d", majorVersion, h.minor, majorVersion, draftVersion))
	}
	for bit := range 32 {
		if h.ignorable>>bit&1 != 0 {
			m.Notes = append(m.Notes, fmt.Sprintf("ignorable feature %d is unknown to this reader", bit))
		}
	}
	return &prologue{head: h, bytes: int64(len(p)), digest: sha256.Sum256(p), manifest: m, codings: codings, plan: plan}, nil
}

// Reader reads a .lora file by position; it is a Source. Its methods may be called from several
// goroutines at once.
type Reader struct {
	r      io.ReaderAt
	size   int64
	pinned bool
	*prologue
	tail      *tail // indexed
	contentID string
	fileID    string
	cache     *cache
	closer    io.Closer
	identity  fileio.Identity // of the file that Open has opened
}

// NewReader opens a .lora file of the given size with two reads, of which the first is enough for a
// small file. It checks all that can be known without the chunks (spec section 15, "open"); r is
// read only by ReadAt, also later.
//
// Memory is the manifest and its records, 40 bytes per chunk, and for reading two chunks per
// worker.
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

// Open opens a file with the default options.
func Open(path string) (*Reader, error) { return OpenWith(path, ReaderOptions{}) }

// OpenWith opens a file.
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
		return nil, fmt.Errorf("%s changed its length from %d to %d while it was read", f.Name(), size, after.Size())
	}
	x.closer, x.identity = f, id
	return x, nil
}

// readPrologue reads the head. start is the beginning of the file, at least the head.
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

// readTail reads the digests and the seek table, or takes them from the start of the file, if that
// is all of it.
func readTail(r io.ReaderAt, size int64, start []byte, pro *prologue) (*tail, error) {
	c := pro.plan.chunks
	off := size - tailLen(c)
	if off < pro.bytes {
		return nil, cutOff(io.EOF, size, fmt.Sprintf("before the digests and the seek table of %d chunks", c))
	}
	t := &tail{c: c}
	if int64(len(start)) == size {
		t.buf = append(t.buf, start[off:]...)
	} else {
		var err error
		if t.buf, err = readRange(nil, r, off, size); err != nil {
			return nil, err
		}
	}
	if le.Uint32(t.buf[len(t.buf)-4:]) != seekEndMagic {
		return nil, broken(1, "the file does not end with a seek table: it is cut off at byte %d, or something follows", size).WithHint(hintRefetch)
	}
	return t, nil
}

func tailOf(pro *prologue, size int64) *expect {
	return &expect{plan: pro.plan, head: pro.bytes, digest: pro.digest, off: size - tailLen(pro.plan.chunks)}
}

// readRange appends to p the bytes of r from off to end, which exist if the size that r was given
// with is true.
func readRange(p []byte, r io.ReaderAt, off, end int64) ([]byte, error) {
	p, err := appendN(p, io.NewSectionReader(r, off, end-off), end-off)
	if err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("the file ends at byte %d and was longer when it was opened: %w", off+int64(len(p)), err)
	}
	return p, err
}

// Manifest describes the file: adapters in the order of their names, layers in that of their
// modules, tensors as they are stored.
func (x *Reader) Manifest() *Manifest { return x.manifest }

// ContentID is the content id that the file claims; Verify proves it.
func (x *Reader) ContentID() string { return x.contentID }

// FileID is the file id: it says which bytes the file must have, if each chunk is held against its
// digest.
func (x *Reader) FileID() string { return x.fileID }

// ReadBlobAt fills p from off of blob i: of tensor i, or of attachment i − len(Tensors). It reads
// and decodes the chunks that hold the range, and no others; their checksums are checked, and their
// SHA-256 when the file is pinned by ReaderOptions.FileID. The content of p after an error is
// undefined. There must be a blob i.
func (x *Reader) ReadBlobAt(p []byte, i int, off int64) error {
	if n := x.plan.blobBytes(i); off < 0 || off > n || int64(len(p)) > n-off {
		return fmt.Errorf("read of %d bytes at %d of blob %d, which has %d", len(p), off, i, n)
	}
	for at := x.plan.blobs[i] + off; len(p) > 0; {
		k := x.plan.chunkAt(at)
		n, err := x.cache.read(p, k, at-x.plan.chunk(k).off)
		if err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// Unchanged reports whether the file of a reader that Open made is as it was then: the same one, of
// the same size, with nothing written to it. A reader over anything else knows of no change, and
// returns nil.
func (x *Reader) Unchanged() error { return x.identity.Check() }

// Close releases memory, and the file if Open has opened it. No other method may be called after
// it.
func (x *Reader) Close() error {
	x.cache.close()
	if x.closer != nil {
		return x.closer.Close()
	}
	return nil
}

// readChunk reads, decodes and checks chunk i into s.
func (x *Reader) readChunk(s *room, d *decoder, i int64) error {
	off, end := x.tail.span(i)
	var err error
	if s.stored, err = readRange(s.stored[:0], x.r, off, end); err != nil {
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
	return broken(61, "chunk %d has the SHA-256 %x, the digests frame says %x", i, got, want).At(off)
}

func otherFile(got, want string) error {
	return fault.New(ErrMismatch, "the file has the id %s, want %s", got, want)
}

// room is the memory for one chunk: its stored bytes become coded bytes, and these raw bytes, in
// two buffers.
type room struct {
	stored []byte
	raw    []byte
	spare  []byte
}

// grow gives a room the memory for chunks of at most n raw bytes.
func (s *room) grow(n int64) {
	if int64(cap(s.stored)) < bound(n) {
		s.stored = make([]byte, 0, bound(n))
		s.spare = make([]byte, 0, bound(n))
	}
}

// decode makes raw bytes of the stored bytes of chunk i, which lie at off in the file.
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
