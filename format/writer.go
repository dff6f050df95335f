package format

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"math"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/parallel"
)

// WriterOptions says how to write a .lora file. It never changes the content.
type WriterOptions struct {
	// ChunkLog2 sets the chunk size to 2^ChunkLog2 raw bytes, from 16 to 24; 0 means 20, 1 MiB.
	// Smaller chunks make a part of the file cheaper to read, and cost some compression.
	ChunkLog2 int
	// ByLayer stores the tensors of a layer side by side, within a dtype. With small chunks,
	// reading one layer then costs little more than its own bytes. Otherwise all A come first, then
	// all B. With chunks of 64 KiB, files of trained adapters are about 0.3 % larger.
	ByLayer bool
	// Quick compresses tensors with Huffman codes alone, one per 128 KiB. That takes a quarter of
	// the time, and as many bytes where tensors hold neither repetitions nor parts of other
	// statistics.
	Quick bool
	// Workers is the number of chunks compressed at once; 0 means one per processor. It does not
	// change the bytes written.
	Workers int
	// MaxManifestBytes bounds the manifest, so that readers with default limits can open the file.
	// 0 means 16 MiB, the default of ReaderOptions. The format allows up to 64 MiB; a reader must
	// then raise its own limit.
	MaxManifestBytes int64
	// Tool and Version name the program that writes the file. If Tool is empty, the provenance of
	// the source stays.
	Tool, Version string
}

// Check refuses a manifest that is certain to be too large for Write, before any work. It adds up
// the lengths of names and the least sizes of numbers; Write checks the exact size.
func (o WriterOptions) Check(m *Manifest) error {
	return o.checkSize(m, leastManifestBytes(m), "at least ")
}

// checkSize compares the size of m's manifest with the limit. about qualifies the size in the
// message: "at least " or "".
func (o WriterOptions) checkSize(m *Manifest, size int64, about string) error {
	limit := manifestLimit(o.MaxManifestBytes)
	if size <= limit {
		return nil
	}
	e := broken(9, "the manifest of %d tensors has %s%d bytes, the limit is %d", len(m.Tensors), about, size, limit)
	if size > maxManifestBytes {
		return e.WithHint("version 1 of the format allows manifests of up to 64 MiB; keep the adapter in its own dialect")
	}
	return e.WithHint(hintManifest)
}

// PeakBytes estimates the memory that Write needs besides the source's: the manifest as text and
// parsed again, and per worker a chunk before and after encoding, with the state of the encoder.
// Garbage not yet collected can double it.
func (o WriterOptions) PeakBytes(m *Manifest) int64 {
	const (
		manifestTimes = 8       // times the text; measured with many small tensors
		encoderBytes  = 8 << 20 // the encoder of one worker
	)
	log2 := o.ChunkLog2
	if log2 <= 0 || log2 > maxChunkLog2 {
		log2 = defaultChunkLog2
	}
	raw := int64(0)
	for i := range m.Tensors {
		raw += m.Tensors[i].NBytes()
	}
	chunks := min(int64(parallel.Workers(o.Workers)), raw>>log2+1)
	return manifestTimes*leastManifestBytes(m) + chunks*(2*min(raw, 1<<log2)+encoderBytes)
}

// Summary describes a whole .lora file.
type Summary struct {
	ContentID   string // identifies the adapters (spec section 13); 64 hex digits
	FileID      string // identifies the bytes of the file; 64 hex digits
	RawBytes    int64  // of all tensors and attachments
	StoredBytes int64  // of the chunks that hold them
	FileBytes   int64  // of the file
	Chunks      int64
}

// Writer is a Sink that writes one .lora file to an io.Writer.
type Writer struct {
	w       io.Writer
	opts    WriterOptions
	summary *Summary
}

// NewWriter returns a Writer. The file is complete once Store has returned nil. The caller closes
// w.
func NewWriter(w io.Writer, opts WriterOptions) *Writer { return &Writer{w: w, opts: opts} }

// Store writes src; see Write.
func (w *Writer) Store(ctx context.Context, src Source) (err error) {
	w.summary, err = Write(ctx, w.w, src, w.opts)
	return err
}

// Summary describes the file that Store wrote; nil before Store succeeds.
func (w *Writer) Summary() *Summary { return w.summary }

// Write writes src to w as a .lora file, in one pass. The bytes depend only on the content of src
// and the options ChunkLog2, ByLayer and Quick: neither on the order in which src lists things nor
// on the number of workers. Write reads src in the order of the file. It needs memory for the
// manifest, 40 bytes per chunk, 32 per tensor, two chunks per worker, and the tables of the
// compressor. After an error w holds the beginning of a file, which every reader reports as
// truncated.
func Write(ctx context.Context, w io.Writer, src Source, opts WriterOptions) (*Summary, error) {
	if src.Manifest() == nil {
		return nil, noManifest()
	}
	m := *src.Manifest()
	if opts.Tool != "" {
		m.Provenance.Tool, m.Provenance.Version = opts.Tool, opts.Version
	}
	if opts.ChunkLog2 == 0 {
		opts.ChunkLog2 = defaultChunkLog2
	}
	if opts.ChunkLog2 < minChunkLog2 || opts.ChunkLog2 > maxChunkLog2 {
		return nil, broken(6, "chunks of 2^%d bytes, want 2^%d to 2^%d", opts.ChunkLog2, minChunkLog2, maxChunkLog2)
	}
	if err := opts.Check(&m); err != nil {
		return nil, err
	}
	order := compareGroups
	if opts.ByLayer {
		order = compareLayers
	}
	a, text, err := arrangeBy(&m, order)
	if err != nil {
		return nil, err
	}
	if err := opts.checkSize(&m, int64(len(text)), ""); err != nil {
		return nil, err
	}
	p, err := newPlan(a.manifest, a.codings, uint8(opts.ChunkLog2), math.MaxInt64)
	if err != nil {
		return nil, err
	}
	f := fileWriter{
		w:       w,
		src:     src,
		a:       a,
		plan:    p,
		sums:    newBlobSums(p),
		tail:    newTail(p.chunks),
		text:    library{best: true},
		isQuick: opts.Quick,
		slots:   make([]slot, parallel.Workers(opts.Workers)),
		fileID:  sha256.New(),
	}
	if err := f.writeHead(text, uint8(opts.ChunkLog2)); err != nil {
		return nil, err
	}
	if err := parallel.Pipe(ctx, len(f.slots), int(p.chunks), f.read, f.encode, f.emit); err != nil {
		return nil, err
	}
	if err := f.writeTail(); err != nil {
		return nil, err
	}
	return &f.summary, nil
}

// fileWriter is the state of one Write.
type fileWriter struct {
	w       io.Writer
	src     Source
	a       *arranged
	plan    *plan
	sums    *blobSums
	tail    *tail
	slots   []slot  // one per worker
	text    library // for long manifests and attachments
	isQuick bool
	fileID  hash.Hash
	summary Summary
}

// slot is memory for one chunk.
type slot struct {
	coder coder
	bytes library // for everything else
	raw   []byte  // the raw bytes
	other []byte  // as many bytes, for the coded form
	frame []byte  // the data frame, in raw or other
}

func (f *fileWriter) write(p []byte) error {
	n, err := f.w.Write(p)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	f.summary.FileBytes += int64(n)
	return err
}

func (f *fileWriter) writeHead(text []byte, chunkLog2 uint8) error {
	s := &f.slots[0]
	frame := s.coder.encode(nil, text, 1, f.library(s, dtype.Invalid, len(text)))
	h := head{minor: minorOf(f.a.manifest), chunkLog2: chunkLog2, manifestBytes: uint32(len(text))}
	if f.a.manifest.sharesTensors() {
		h.critical = sharedTensors
	}
	p := appendHead(nil, h, frame)
	digest := sha256.Sum256(p)
	copy(f.tail.headDigest(), digest[:])
	f.tail.setEntry(0, int64(len(p)), 0)
	f.fileID.Write(p)
	return f.write(p)
}

// minorOf returns the lowest minor version that can express m.
func minorOf(m *Manifest) (minor uint16) {
	if m.sharesTensors() {
		minor = 1
	}
	for i := range m.Adapters {
		for j := range m.Adapters[i].Layers {
			switch k := m.Adapters[i].Layers[j].Kind; {
			case k.isMethod():
				return 2
			case k.saysDimension():
				minor = 1
			}
		}
		if slices.ContainsFunc(m.Adapters[i].Beside, func(b Beside) bool { return b.Action == Difference }) {
			return 2
		}
	}
	return minor
}

// read reads the raw bytes of chunk i.
func (f *fileWriter) read(worker, i int) error {
	c, s := f.plan.chunk(int64(i)), &f.slots[worker]
	if s.raw == nil {
		s.raw = make([]byte, f.plan.largest, bound(f.plan.largest))
		s.other = make([]byte, f.plan.largest, bound(f.plan.largest))
	}
	s.raw = s.raw[:c.n]
	for piece := range f.plan.pieces(c) {
		if err := f.src.ReadBlobAt(s.raw[piece.lo:piece.hi], f.a.source[piece.blob], piece.off); err != nil {
			return err
		}
	}
	f.sums.parts(c, s.raw)
	return nil
}

// encode makes the frame of chunk i.
func (f *fileWriter) encode(worker, i int) error {
	c, s := f.plan.chunk(int64(i)), &f.slots[worker]
	f.sums.whole(c, s.raw)
	if c.coding == planes {
		width := c.dtype.Size()
		s.other = s.other[:c.n]
		split(s.other, s.raw, width)
		s.frame = s.coder.encode(s.raw[:0], s.other, width, &s.bytes)
	} else if f.isQuick && c.dtype != dtype.Invalid {
		s.frame = s.coder.quick(s.other[:0], s.raw)
	} else {
		s.frame = s.coder.encode(s.other[:0], s.raw, 1, f.library(s, c.dtype, len(s.raw)))
	}
	digest := sha256.Sum256(s.frame)
	copy(f.tail.digest(int64(i)), digest[:])
	f.tail.setEntry(int64(i)+1, int64(len(s.frame)), c.n)
	return nil
}

// library returns the encoder for n raw bytes of dtype t: the slot's own or, for long text, the
// shared one that takes more time and memory.
func (f *fileWriter) library(s *slot, t dtype.Type, n int) *library {
	if t == dtype.Invalid && n >= longText {
		return &f.text
	}
	return &s.bytes
}

// emit writes the frame of chunk i.
func (f *fileWriter) emit(worker, i int) error {
	s := &f.slots[worker]
	f.summary.StoredBytes += int64(len(s.frame))
	return f.write(s.frame)
}

// writeTail checks the attachments and writes the fields known only at the end.
func (f *fileWriter) writeTail() error {
	m := f.a.manifest
	if errs := checkAttachments(m, f.sums.sums); len(errs) > 0 {
		return errs[0]
	}
	content := contentID(m, f.sums.sums)
	copy(f.tail.contentID(), content[:])
	f.tail.setTotal(f.plan.total)
	f.fileID.Write(f.tail.buf)
	f.summary.ContentID, f.summary.FileID = hex.EncodeToString(content[:]), hex.EncodeToString(f.fileID.Sum(nil))
	f.summary.RawBytes, f.summary.Chunks = f.plan.total, f.plan.chunks
	return f.write(f.tail.buf)
}

// checkAttachments returns every violation of R55, given the SHA-256 of every blob.
func checkAttachments(m *Manifest, sums []sum) (errs []error) {
	for i := range m.Attachments {
		a := &m.Attachments[i]
		got := hex.EncodeToString(sums[len(m.Tensors)+i][:])
		if a.SHA256 != "" && a.SHA256 != got && !isSourceHeader(m, a.Name) {
			errs = append(errs, broken(55, "attachment %q has SHA-256 %s, the manifest says %s", a.Name, got, a.SHA256))
		}
	}
	return errs
}

// isSourceHeader reports whether an attachment is the header of a source file. Its sha256 is the
// digest of that whole file.
func isSourceHeader(m *Manifest, name string) bool {
	if len(m.Adapters) == 1 {
		return name == SourceHeader
	}
	for i := range m.Adapters {
		if name == m.Adapters[i].Name+"/"+SourceHeader {
			return true
		}
	}
	return false
}
