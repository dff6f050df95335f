package format

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"iter"

	"github.com/loratool/loratool/internal/parallel"
)

// StreamReader reads a .lora file from beginning to end, for example from a pipe.
type StreamReader struct {
	r    *bufio.Reader
	opts ReaderOptions
	*prologue
	id      []byte // the head; the file id is computed from it at the end
	summary *Summary
}

// streamBuffer is how much of a stream is read ahead.
const streamBuffer = 64 << 10

// NewStreamReader reads the head of a file. It buffers up to 64 KiB of r.
func NewStreamReader(r io.Reader, opts ReaderOptions) (*StreamReader, error) {
	x := &StreamReader{r: bufio.NewReaderSize(r, streamBuffer), opts: opts}
	fixed, err := x.r.Peek(headBytes)
	if err != nil && err != io.EOF {
		return nil, err
	}
	h, err := parseHead(fixed, opts.manifestLimit())
	if err != nil {
		return nil, err
	}
	p, err := appendN(nil, x.r, h.frameBytes())
	if err != nil {
		return nil, cutOff(err, int64(len(p)), fmt.Sprintf("inside the head of %d bytes", h.frameBytes()))
	}
	x.id = p
	x.prologue, err = parsePrologue(h, p, opts)
	return x, err
}

// Manifest describes the file; see Reader.Manifest.
func (x *StreamReader) Manifest() *Manifest { return x.manifest }

// Piece is a part of a blob, which is a tensor or an attachment.
type Piece struct {
	Blob  int    // the number of the blob, as in Source.ReadBlobAt
	Off   int64  // offset of the bytes in the blob
	Bytes []byte // valid until the next piece
}

// Pieces reads the rest of the file and yields the bytes of all tensors and attachments, every byte
// once, in the order of the file. Empty blobs yield nothing. An error comes last, with an empty
// piece.
//
// Pieces yields the bytes of a chunk once the chunk's own checksum holds. Only a loop that ends
// without an error has checked everything: the digests, the seek table, the content id, and that
// the file ends there (spec section 15, "stream"). Summary then describes the file. The sequence
// can be used once. ReaderOptions.Workers chunks are decoded at once; memory is 40 bytes per chunk
// and two chunks per worker.
func (x *StreamReader) Pieces(ctx context.Context) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		wanted := true
		err := parallel.Emit(func(emit func(Piece) error) (err error) {
			x.summary, err = x.each(ctx, func(blob int, off int64, p []byte) error { return emit(Piece{blob, off, p}) })
			return err
		}, func(p Piece) bool {
			wanted = yield(p, nil)
			return wanted
		})
		if err != nil && wanted {
			yield(Piece{}, err)
		}
	}
}

// Summary describes the file after Pieces has read it to its end without an error. Before that it
// is nil.
func (x *StreamReader) Summary() *Summary { return x.summary }

// each calls visit for every piece, one call at a time.
func (x *StreamReader) each(ctx context.Context, visit func(blob int, off int64, p []byte) error) (*Summary, error) {
	workers := parallel.Workers(x.opts.Workers)
	s := streaming{
		StreamReader: x,
		visit:        visit,
		off:          x.bytes,
		sums:         newBlobSums(x.plan),
		rooms:        make([]streamRoom, workers),
		decoder:      newDecoder(workers),
	}
	defer s.decoder.close()
	if err := parallel.Pipe(ctx, workers, int(x.plan.chunks), s.read, s.decode, s.hand); err != nil {
		return nil, err
	}
	return s.finish()
}

// streaming is the state of one pass over a file.
type streaming struct {
	*StreamReader
	visit   func(blob int, off int64, p []byte) error
	off     int64   // where the next frame begins
	ends    []int64 // where the chunk frames end
	digests []sum   // of the chunk frames
	sums    *blobSums
	rooms   []streamRoom // one per worker
	decoder *decoder
}

type streamRoom struct {
	room
	off    int64
	digest sum
}

// read reads the frame of chunk i.
func (s *streaming) read(worker, i int) error {
	m, c := &s.rooms[worker], s.plan.chunk(int64(i))
	m.grow(s.plan.largest)
	var err error
	m.off = s.off
	m.stored, err = readFrame(s.r, m.stored, s.off, c.n)
	if err != nil {
		return about(err, fmt.Sprintf("chunk %d", i))
	}
	s.off += int64(len(m.stored))
	s.ends = append(s.ends, s.off)
	return nil
}

// decode decodes chunk i.
func (s *streaming) decode(worker, i int) error {
	m, c := &s.rooms[worker], s.plan.chunk(int64(i))
	m.digest = sha256.Sum256(m.stored)
	if err := m.room.decode(s.decoder, c, int64(i), m.off); err != nil {
		return err
	}
	s.sums.whole(c, m.raw)
	return nil
}

// hand passes the pieces of chunk i to visit.
func (s *streaming) hand(worker, i int) error {
	m, c := &s.rooms[worker], s.plan.chunk(int64(i))
	s.digests = append(s.digests, m.digest)
	s.sums.parts(c, m.raw)
	for piece := range s.plan.pieces(c) {
		if err := s.visit(piece.blob, piece.off, m.raw[piece.lo:piece.hi:piece.hi]); err != nil {
			return err
		}
	}
	return nil
}

// finish reads the digests and the seek table and checks everything against them.
func (s *streaming) finish() (*Summary, error) {
	t := &tail{c: s.plan.chunks}
	var err error
	if t.buf, err = appendN(nil, s.r, tailLen(t.c)); err != nil {
		return nil, cutOff(err, s.off+int64(len(t.buf)), "inside the digests or the seek table")
	}
	end := s.off + int64(len(t.buf))
	if _, err := s.r.ReadByte(); err != io.EOF {
		if err != nil {
			return nil, err
		}
		return nil, broken(2, "the file goes on after the seek table").At(end)
	}
	id := sha256.New()
	id.Write(s.id)
	id.Write(t.buf)
	sum := &Summary{
		FileID:      hex.EncodeToString(id.Sum(nil)),
		RawBytes:    s.plan.total,
		StoredBytes: s.off - s.bytes,
		FileBytes:   end,
		Chunks:      t.c,
	}
	if s.opts.FileID != "" && s.opts.FileID != sum.FileID {
		return nil, otherFile(sum.FileID, s.opts.FileID)
	}
	x := &expect{plan: s.plan, head: s.bytes, digest: s.digest, off: s.off, stored: func(i int64) int64 { return s.span(i) }}
	if errs, _ := t.check(x); len(errs) > 0 {
		return nil, errs[0]
	}
	for i, got := range s.digests {
		if want := t.digest(int64(i)); string(got[:]) != string(want) {
			return nil, badDigest(int64(i), s.ends[i]-s.span(int64(i)), got, want)
		}
	}
	content, errs := checkContent(s.manifest, t, s.off, s.sums.sums)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	sum.ContentID = content
	return sum, nil
}

// span returns the length of chunk frame i.
func (s *streaming) span(i int64) int64 {
	if i == 0 {
		return s.ends[0] - s.bytes
	}
	return s.ends[i] - s.ends[i-1]
}
