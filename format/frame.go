package format

import (
	"io"

	"github.com/loratool/loratool/internal/fault"
)

// This file walks data frames (spec section 5) without decoding them. A general zstd decoder
// accepts several frames, skippable frames and empty input where one frame belongs. A frame that
// passes the walk is a single frame: it has the right content size, fills its bytes, and no block
// exceeds the limit.

const (
	frameDescriptor = 0x24 // single segment, checksum, no dictionary
	descriptorMask  = 0x3F
	prefixBytes     = 5 // magic and descriptor
	blockBytes      = 3 // block header
	checksumBytes   = 4
	maxBlockBytes   = 128 << 10
)

// The types of block.
const (
	rawBlock = iota
	rleBlock
	compressedBlock
	reservedBlock
)

// sizeWidth returns the width of the content size field, in bytes.
func sizeWidth(descriptor byte) int { return 1 << (descriptor >> 6) }

// contentSize reads a content size field of 1, 2, 4 or 8 bytes.
func contentSize(field []byte) uint64 {
	switch len(field) {
	case 1:
		return uint64(field[0])
	case 2:
		return uint64(le.Uint16(field)) + 256
	case 4:
		return uint64(le.Uint32(field))
	}
	return le.Uint64(field)
}

// block is a block header.
type block struct {
	last   bool
	kind   int
	size   int64 // decoded bytes of a raw or RLE block, stored bytes of a compressed block
	stored int64 // bytes after the header
}

func parseBlock(p []byte) block {
	h := uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16
	b := block{last: h&1 != 0, kind: int(h >> 1 & 3), size: int64(h >> 3)}
	b.stored = b.size
	if b.kind == rleBlock {
		b.stored = 1
	}
	return b
}

// walker steps through the headers of one frame. off is where the frame lies in the file, so that
// errors give offsets in the file.
type walker struct {
	off   int64 // of the frame, in the file
	n     int64 // the decoded length, known beforehand
	pos   int64 // in the frame
	known int64 // decoded bytes of the raw and RLE blocks so far
	last  bool
}

// prefix checks magic and descriptor and returns the width of the content size field.
func (w *walker) prefix(p []byte) (width int, err error) {
	if magic := le.Uint32(p); magic != frameMagic {
		return 0, broken(10, "the frame has magic %08x, want %08x", magic, uint32(frameMagic)).At(w.off)
	}
	if p[4]&descriptorMask != frameDescriptor {
		return 0, broken(11, "frame descriptor %02x, want single segment, checksum and no dictionary", p[4]).At(w.off + 4)
	}
	w.pos = prefixBytes
	return sizeWidth(p[4]), nil
}

// content checks the content size.
func (w *walker) content(field []byte) error {
	if n := contentSize(field); n != uint64(w.n) {
		return broken(12, "the content size of the frame is %d, want %d", n, w.n).At(w.off + prefixBytes)
	}
	w.pos += int64(len(field))
	return nil
}

// block checks a block header and moves past the block.
func (w *walker) block(p []byte) (block, error) {
	b := parseBlock(p)
	limit := min(w.n, maxBlockBytes)
	switch {
	case b.kind == reservedBlock:
		return b, broken(13, "a block has the reserved type 3").At(w.off + w.pos)
	case b.size > limit:
		return b, broken(13, "a block has %d bytes, the limit is %d", b.size, limit).At(w.off + w.pos)
	case b.kind != compressedBlock:
		w.known += b.size
	}
	if w.known > w.n {
		return b, broken(14, "the blocks hold more than the %d bytes of the content size", w.n).At(w.off + w.pos)
	}
	w.pos += blockBytes + b.stored
	w.last = b.last
	return b, nil
}

// walkFrame checks R10 to R15 for a frame, as far as possible without decoding it. p holds all its
// stored bytes, which begin at off in the file; n is its decoded length, known beforehand.
func walkFrame(p []byte, off, n int64) error {
	w := walker{off: off, n: n}
	short := func(what string) error {
		return broken(15, "the frame is longer than its %d stored bytes, which end inside %s", len(p), what).At(off + int64(len(p)))
	}
	header := func(rule int, field string) error {
		return broken(rule, "the frame has %d stored bytes, which end before its %s", len(p), field).At(off)
	}
	switch {
	case len(p) < prefixBytes-1:
		return header(10, "magic number")
	case len(p) < prefixBytes:
		return header(11, "descriptor")
	}
	width, err := w.prefix(p)
	if err != nil {
		return err
	}
	if len(p) < prefixBytes+width {
		return header(12, "content size")
	}
	if err := w.content(p[prefixBytes : prefixBytes+width]); err != nil {
		return err
	}
	for !w.last {
		if int64(len(p))-w.pos < blockBytes {
			return short("a block header")
		}
		if _, err := w.block(p[w.pos:]); err != nil {
			return err
		}
		if w.pos > int64(len(p)) {
			return short("a block")
		}
	}
	switch rest := int64(len(p)) - w.pos; {
	case rest < checksumBytes:
		return short("the checksum")
	case rest > checksumBytes:
		return broken(15, "%d of the %d stored bytes follow the end of the frame", rest-checksumBytes, len(p)).At(off + w.pos + checksumBytes)
	}
	return nil
}

// readFrame reads a frame of unknown length from r. The frame begins at off in the file and decodes
// to n bytes. readFrame appends to dst[:0]; a capacity of bound(n) is always enough. With an error
// it returns the bytes read so far.
func readFrame(r io.Reader, dst []byte, off, n int64) ([]byte, error) {
	w := walker{off: off, n: n}
	p := dst[:0]
	more := func(k int64) ([]byte, error) {
		at := len(p)
		if int64(at)+k > bound(n) {
			return nil, broken(16, "the frame has more than %d bytes, the limit for a content of %d", bound(n), n).At(off)
		}
		var err error
		p, err = appendN(p, r, k)
		if err != nil {
			return nil, cutOff(err, off+int64(len(p)), "inside a frame")
		}
		return p[at:], nil
	}
	field, err := more(prefixBytes)
	if err != nil {
		return p, err
	}
	width, err := w.prefix(field)
	if err != nil {
		return p, err
	}
	if field, err = more(int64(width)); err != nil {
		return p, err
	}
	if err := w.content(field); err != nil {
		return p, err
	}
	for !w.last {
		if field, err = more(blockBytes); err != nil {
			return p, err
		}
		b, err := w.block(field)
		if err != nil {
			return p, err
		}
		if _, err := more(b.stored); err != nil {
			return p, err
		}
	}
	_, err = more(checksumBytes)
	return p, err
}

// appendN appends n bytes from r to p. A p without enough room grows as bytes arrive, so a false
// length costs at most twice the memory of the bytes really there. If r ends early the error is
// io.ErrUnexpectedEOF and the bytes before the end are appended.
func appendN(p []byte, r io.Reader, n int64) ([]byte, error) {
	const step = 64 << 10
	for n > 0 {
		room := int64(cap(p) - len(p))
		if room == 0 {
			p = append(p, make([]byte, min(n, max(step, int64(len(p)))))...)[:len(p)]
			continue
		}
		k, err := io.ReadFull(r, p[len(p):len(p)+int(min(n, room))])
		p = p[:len(p)+k]
		n -= int64(k)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// cutOff replaces the end of a reader by the error for a truncated file. Other errors stay.
func cutOff(err error, at int64, where string) error {
	if err != io.ErrUnexpectedEOF && err != io.EOF {
		return err
	}
	e := broken(1, "the file ends at byte %d, %s", at, where)
	return e.WithHint(hintRefetch)
}

// about puts the subject of an error before its message.
func about(err error, what string) error {
	if e, ok := err.(*fault.Error); ok {
		e.Msg = what + ": " + e.Msg
	}
	return err
}
