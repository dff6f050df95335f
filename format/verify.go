package format

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/parallel"
)

// maxFailures bounds the number of failures that Verify returns.
const maxFailures = 100

// Verify checks a whole .lora file of size bytes against rules R1 to R66 of spec/FORMAT.md. It
// returns every failure that can be told apart, joined in the order of the file, up to a hundred.
// If the end of the file does not tell where the chunks are, Verify reads the file from the
// beginning and returns the first failure only. The summary is nil if there is an error.
//
// ReaderOptions.Workers chunks are decoded at once; a StreamReader needs as much memory.
func Verify(ctx context.Context, r io.ReaderAt, size int64, opts ReaderOptions) (*Summary, error) {
	start, pro, err := readPrologue(r, size, opts)
	if err != nil {
		return nil, err
	}
	t, err := readTail(r, size, start, pro)
	located := false
	var failures []error
	if err == nil {
		failures, located = t.check(tailOf(pro, size))
	}
	if _, broken := err.(*fault.Error); err != nil && !broken {
		return nil, err
	}
	if !located {
		return nil, walkThrough(ctx, r, size, opts, errors.Join(append(failures, err)...))
	}
	id := sha256.New()
	id.Write(start[:pro.bytes])
	id.Write(t.buf)
	t.index()
	v := verification{r: r, prologue: pro, tail: t, off: size - tailLen(t.c), sums: newBlobSums(pro.plan), failures: failures}
	if err := v.chunks(ctx, opts); err != nil {
		return nil, err
	}
	content := v.content()
	if len(v.failures) > 0 {
		return nil, errors.Join(v.failures...)
	}
	sum := &Summary{
		ContentID:   content,
		FileID:      hex.EncodeToString(id.Sum(nil)),
		RawBytes:    pro.plan.total,
		StoredBytes: size - tailLen(t.c) - pro.bytes,
		FileBytes:   size,
		Chunks:      t.c,
	}
	if opts.FileID != "" && opts.FileID != sum.FileID {
		return nil, otherFile(sum.FileID, opts.FileID)
	}
	return sum, nil
}

// walkThrough reads a file from its beginning to find out why its end is damaged. known is the
// error that the end gives by itself.
func walkThrough(ctx context.Context, r io.ReaderAt, size int64, opts ReaderOptions, known error) error {
	x, err := NewStreamReader(io.NewSectionReader(r, 0, size), opts)
	if err == nil {
		_, err = x.each(ctx, func(int, int64, []byte) error { return nil })
	}
	if err == nil || ctx.Err() != nil {
		return known
	}
	return err
}

// verification is the state of one Verify.
type verification struct {
	r io.ReaderAt
	*prologue
	tail     *tail
	off      int64 // where the tail begins
	sums     *blobSums
	failures []error
	lost     bool // the raw bytes of some chunk are unknown
}

// verifyRoom is the memory of one worker.
type verifyRoom struct {
	room
	failures []error // of the chunk in the room
	lost     bool
}

// chunks checks every chunk.
func (v *verification) chunks(ctx context.Context, opts ReaderOptions) error {
	workers := parallel.Workers(opts.Workers)
	rooms := make([]verifyRoom, workers)
	d := newDecoder(workers)
	defer d.close()
	check := func(worker, i int) error {
		m, c := &rooms[worker], v.plan.chunk(int64(i))
		m.grow(v.plan.largest)
		m.failures, m.lost = nil, false
		off, end := v.tail.span(int64(i))
		var err error
		if m.stored, err = readRange(m.stored[:0], v.r, off, end); err != nil {
			return err
		}
		if got, want := sha256.Sum256(m.stored), v.tail.digest(int64(i)); string(got[:]) != string(want) {
			m.failures = append(m.failures, badDigest(int64(i), off, got, want))
		}
		if err := m.decode(d, c, int64(i), off); err != nil {
			m.failures, m.lost = append(m.failures, err), true
			return nil
		}
		v.sums.whole(c, m.raw)
		return nil
	}
	collect := func(worker, i int) error {
		m := &rooms[worker]
		v.lost = v.lost || m.lost
		if len(v.failures) < maxFailures {
			v.failures = append(v.failures, m.failures...)
		}
		if !v.lost {
			v.sums.parts(v.plan.chunk(int64(i)), m.raw)
		}
		return nil
	}
	return parallel.Pipe(ctx, workers, int(v.plan.chunks), nil, check, collect)
}

// content checks the content id and the attachments, if all chunks could be decoded.
func (v *verification) content() string {
	if v.lost {
		return ""
	}
	id, failures := checkContent(v.manifest, v.tail, v.off, v.sums.sums)
	v.failures = append(v.failures, failures...)
	return id
}

// checkContent returns the content id and every violation of R55 and R62. sums holds the SHA-256 of
// every blob; off is where the tail begins.
func checkContent(m *Manifest, t *tail, off int64, sums []sum) (string, []error) {
	errs := checkAttachments(m, sums)
	id := contentID(m, sums)
	if string(id[:]) != string(t.contentID()) {
		errs = append(errs, broken(62, "the content has id %x, the digests frame says %x", id, t.contentID()).At(off+48))
	}
	return hex.EncodeToString(id[:]), errs
}
