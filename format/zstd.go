package format

import (
	"bytes"
	"errors"
	"sync"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/zstd"
)

// Only this file uses the zstd library.

// coder encodes data frames. It is scratch memory for one goroutine at a time.
type coder struct {
	cutter cutter
	huff   huff0.Scratch
	spare  []byte
}

// A chunk that shrinks below 1/stockRatio holds repetitions. Blocks of literals cannot express
// them, so the library may do better.
const stockRatio = 2

// encode appends the data frame for coded bytes that consist of planes of width bytes each, or of
// one plane if width is 1. It writes blocks of literals, or the library's frame if that is worth
// trying and smaller. The frame has at most bound(len(coded)) bytes. It depends only on the input
// and on the version of the library.
func (c *coder) encode(dst, coded []byte, width int, lib *library) []byte {
	start := len(dst)
	dst = c.literals(dst, coded, len(coded)/width)
	if width == 1 || (len(dst)-start)*stockRatio < len(coded) {
		c.spare = lib.encode(c.spare[:0], coded)
		if len(c.spare) < len(dst)-start {
			dst = append(dst[:start], c.spare...)
		}
	}
	return dst
}

// library is an encoder that searches for repetitions. It allocates on first use: 3 MiB, or 35 MiB
// if best is set. Several goroutines may use it; they wait for each other.
type library struct {
	best bool
	once sync.Once
	z    *zstd.Encoder
}

// longText is the length from which a manifest or attachment is worth the memory of the best
// encoder.
const longText = 64 << 10

// libraryWindow is how far back the library looks: one chunk of the usual size. The library's
// memory is a multiple of it.
const libraryWindow = 1 << 20

// encode appends a data frame.
func (l *library) encode(dst, coded []byte) []byte {
	l.once.Do(func() {
		level := zstd.SpeedBetterCompression
		if l.best {
			level = zstd.SpeedBestCompression
		}
		var err error
		l.z, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(true),
			zstd.WithEncoderLevel(level), zstd.WithWindowSize(libraryWindow), zstd.WithLowerEncoderMem(true), zstd.WithZeroFrames(true))
		if err != nil {
			panic("format: " + err.Error()) // the options are constants
		}
	})
	return l.z.EncodeAll(coded, dst)
}

// literals appends a data frame of blocks without sequences.
func (c *coder) literals(dst, coded []byte, plane int) []byte {
	w := blockWriter{dst: appendFrameHeader(dst, len(coded)), coded: coded, huff: &c.huff}
	for at := 0; at < len(coded); {
		segments, n := c.cutter.cut(coded[at:], at, plane)
		for i := range segments {
			w.add(segments[i].kind, segments[i].n)
		}
		at += n
	}
	return le.AppendUint32(w.end(), uint32(xxh64(coded)))
}

// quick appends a data frame of blocks as long as they may be, without sequences.
func (c *coder) quick(dst, coded []byte) []byte {
	w := blockWriter{dst: appendFrameHeader(dst, len(coded)), coded: coded, huff: &c.huff}
	for rest := coded; len(rest) > 0; {
		n, kind := min(maxBlockBytes, len(rest)), compressedBlock
		if isRun(rest[:n]) {
			kind = rleBlock
		}
		w.add(kind, n)
		rest = rest[n:]
	}
	return le.AppendUint32(w.end(), uint32(xxh64(coded)))
}

// isRun reports whether all bytes are equal.
func isRun(p []byte) bool { return bytes.Equal(p[1:], p[:len(p)-1]) }

// appendFrameHeader appends the header of a data frame of n decoded bytes.
func appendFrameHeader(dst []byte, n int) []byte {
	dst = le.AppendUint32(dst, frameMagic)
	switch {
	case n < 1<<8:
		return append(dst, frameDescriptor, byte(n))
	case n < 1<<16+1<<8:
		return le.AppendUint16(append(dst, frameDescriptor|1<<6), uint16(n-256))
	}
	return le.AppendUint32(append(dst, frameDescriptor|2<<6), uint32(n))
}

// blockWriter appends the blocks of a frame. It joins neighbouring raw blocks.
type blockWriter struct {
	dst      []byte
	coded    []byte
	from, to int // the part of coded that waits for a raw block
	header   int // where the last block begins in dst; 0 before the first block
	huff     *huff0.Scratch
}

// add appends a block of the given kind for the next n bytes, or a raw block if that is no larger.
func (w *blockWriter) add(kind, n int) {
	p := w.coded[w.to : w.to+n]
	switch {
	case kind == rleBlock:
		w.flush()
		w.block(rleBlock, n)
		w.dst = append(w.dst, p[0])
		w.from = w.to + n
	case kind == compressedBlock && w.huffman(p):
		w.from = w.to + n
	}
	w.to += n
	if w.to-w.from >= maxBlockBytes {
		w.rawBlock(maxBlockBytes)
	}
}

// end appends the waiting bytes, marks the last block, and returns the frame.
func (w *blockWriter) end() []byte {
	w.flush()
	if w.header == 0 {
		w.rawBlock(0)
	}
	w.dst[w.header] |= 1
	return w.dst
}

func (w *blockWriter) flush() {
	if w.from < w.to {
		w.rawBlock(w.to - w.from)
	}
}

func (w *blockWriter) rawBlock(n int) {
	w.block(rawBlock, n)
	w.dst = append(w.dst, w.coded[w.from:w.from+n]...)
	w.from += n
}

// block appends a block header.
func (w *blockWriter) block(kind, size int) {
	w.header = len(w.dst)
	w.dst = appendUint24(w.dst, uint64(kind<<1|size<<3))
}

const (
	huffmanLiterals = 2         // Literals_Block_Type
	maxOneStream    = 1<<10 - 1 // the most literals in one stream; more are split into four streams
)

// huffman appends a block that holds p under its own Huffman code, without sequences (RFC 8878,
// section 3.1.1.3.1), and reports whether that is smaller than p. If it is not, huffman appends
// nothing.
func (w *blockWriter) huffman(p []byte) bool {
	n := len(p)
	compress, format := huff0.Compress4X, uint64(3)
	switch {
	case n <= maxOneStream:
		compress, format = huff0.Compress1X, 0
	case n < 1<<14:
		format = 2
	}
	w.huff.Reuse = huff0.ReusePolicyNone
	out, _, err := compress(p, w.huff)
	width := 3 + max(0, int(format)-1) // of the header
	if err != nil || width+len(out)+1 >= n {
		return false
	}
	w.flush()
	w.block(compressedBlock, width+len(out)+1)
	sizeBits := 10
	if format > 0 {
		sizeBits = 10 + 4*int(format-1) // 14 or 18
	}
	header := huffmanLiterals | format<<2 | uint64(n)<<4 | uint64(len(out))<<(4+sizeBits)
	for range width {
		w.dst = append(w.dst, byte(header))
		header >>= 8
	}
	w.dst = append(w.dst, out...)
	w.dst = append(w.dst, 0) // no sequences
	return true
}

func appendUint24(dst []byte, x uint64) []byte { return append(dst, byte(x), byte(x>>8), byte(x>>16)) }

// decoder decodes data frames. Several goroutines may call decode at once, up to the number given
// to newDecoder.
type decoder struct{ z *zstd.Decoder }

func newDecoder(concurrency int) *decoder {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(concurrency), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("format: " + err.Error()) // the options are constants
	}
	return &decoder{z}
}

// decode decodes the data frame p into dst, whose length is the known content size. p begins at off
// in the file. After an error the content of dst is undefined.
func (d *decoder) decode(dst, p []byte, off int64) error {
	if err := walkFrame(p, off, int64(len(dst))); err != nil {
		return err
	}
	out, err := d.z.DecodeAll(p, dst[:0:len(dst)])
	switch {
	case errors.Is(err, zstd.ErrCRCMismatch):
		return broken(17, "the checksum of the frame does not match its content").At(off)
	case errors.Is(err, zstd.ErrFrameSizeMismatch), errors.Is(err, zstd.ErrFrameSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return broken(14, "the blocks do not decode to the %d bytes of the content size", len(dst)).At(off)
	case err != nil:
		return d.again(dst, p, off, err)
	case len(out) != len(dst):
		return broken(14, "the blocks decode to %d bytes, the content size is %d", len(out), len(dst)).At(off)
	}
	copy(dst, out) // the library may have allocated another slice
	return nil
}

// again decodes a frame that the library refuses for the reason given, by the letter of RFC 8878.
func (d *decoder) again(dst, p []byte, off int64, reason error) error {
	n, ok := decodePlainly(dst, p)
	switch {
	case !ok:
		return broken(13, "a block does not decode: %v", reason).At(off)
	case n != len(dst):
		return broken(14, "the blocks decode to %d bytes, the content size is %d", n, len(dst)).At(off)
	case le.Uint32(p[len(p)-checksumBytes:]) != uint32(xxh64(dst)):
		return broken(17, "the checksum of the frame does not match its content").At(off)
	}
	return nil
}

// close releases the library's state.
func (d *decoder) close() { d.z.Close() }
