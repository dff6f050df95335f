package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/loratool/loratool/internal/fault"
)

// This file holds the layout of the three skippable frames around the chunks (spec sections 3, 4,
// 10 and 11): every offset of the format, and the functions that parse and append the fields at
// these offsets.

const (
	headMagic    = 0x184D2A5A
	digestsMagic = 0x184D2A5B
	seekMagic    = 0x184D2A5E
	seekEndMagic = 0x8F92EAB1
	frameMagic   = 0xFD2FB528
	signature    = "\x89LRA\r\n\x1a\n" // bytes 8 to 15 of a file

	majorVersion  = 1
	minorVersion  = 2             // the latest version
	knownMembers  = 1             // the latest version with a member of its own; a later file may have more, which are ignored
	knownCritical = sharedTensors // feature bits that this reader knows

	skipBytes      = 8  // magic and size of a skippable frame
	sigBytes       = 16 // the head up to the end of the signature
	headBytes      = 36 // the head up to the manifest frame
	digestBytes    = 32
	digestsBytes   = 80                                           // the digests frame without chunk digests
	seekEntryBytes = 8                                            // one entry of the seek table
	seekTailBytes  = 9                                            // frames, descriptor, end magic
	seekBytes      = skipBytes + 2*seekEntryBytes + seekTailBytes // the seek table without chunks
	tailBytes      = digestsBytes + seekBytes                     // both frames without chunks
	bytesPerChunk  = digestBytes + seekEntryBytes                 // the size of a chunk's entries
	firstReadBytes = 16 << 10                                     // the first read of a reader with random access: most heads fit

	// Limits of the specification (section 16).
	minChunkLog2     = 16
	maxChunkLog2     = 24
	defaultChunkLog2 = 20
	maxManifestBytes = 1 << 26
	maxRawBytes      = 1 << 48
	maxChunks        = 1 << 24
	maxDepth         = 16
	maxTensors       = 1 << 20
	maxDims          = 8
	maxElements      = 1 << 48
	maxInteger       = 1<<53 - 1
)

// Limits that a producer of adapters must keep (spec section 16).
const (
	MaxNameBytes = 1024    // of a name, rule R32
	MaxRank      = 1 << 16 // of a layer, rule R37
)

// Magic is the first four bytes of a .lora file. Bytes 8 to 15 are the signature (R3 of
// spec/FORMAT.md).
const Magic = "\x5a\x2a\x4d\x18"

var le = binary.LittleEndian

// bound is the most bytes that a data frame for n decoded bytes may take (R8, R16).
func bound(n int64) int64 { return n + n/128 + 64 }

// head is the fixed part of the head frame.
type head struct {
	size          uint32 // bytes after this field: the rest of the fixed part, and the manifest frame
	minor         uint16
	critical      uint32
	ignorable     uint32
	chunkLog2     uint8
	manifestBytes uint32
}

// frameBytes returns the length of the whole head frame.
func (h *head) frameBytes() int64 { return skipBytes + int64(h.size) }

// storedManifest returns the length of the manifest's data frame.
func (h *head) storedManifest() int64 { return h.frameBytes() - headBytes }

// parseHead reads the head from p, the first headBytes of a file or all of a shorter one.
func parseHead(p []byte, limit int64) (head, error) {
	var h head
	if len(p) < sigBytes {
		return h, broken(1, "%d bytes are too few for a .lora file", len(p)).WithHint(hintRefetch)
	}
	if le.Uint32(p) != headMagic || string(p[8:16]) != signature {
		return h, recognise(p)
	}
	if len(p) < headBytes {
		return h, broken(1, "the file ends at byte %d, inside the head", len(p)).WithHint(hintRefetch)
	}
	h = head{
		size:          le.Uint32(p[4:]),
		minor:         le.Uint16(p[18:]),
		critical:      le.Uint32(p[20:]),
		ignorable:     le.Uint32(p[24:]),
		chunkLog2:     p[28],
		manifestBytes: le.Uint32(p[32:]),
	}
	major := le.Uint16(p[16:])
	unknown := h.critical &^ knownCritical
	switch n := int64(h.manifestBytes); {
	case major != majorVersion:
		return h, broken(4, "major version %d, this reader knows %d", major, majorVersion).At(16).WithHint(hintNewer)
	case unknown != 0:
		return h, broken(5, "the file needs critical feature bit %d, which this reader does not know", bits.TrailingZeros32(unknown)).At(20).WithHint(hintNewer)
	case h.chunkLog2 < minChunkLog2 || h.chunkLog2 > maxChunkLog2:
		return h, broken(6, "chunks of 2^%d bytes, want 2^%d to 2^%d", h.chunkLog2, minChunkLog2, maxChunkLog2).At(28)
	case p[29]|p[30]|p[31] != 0:
		return h, broken(7, "reserved bytes % x, want zero", p[29:32]).At(29)
	case n > limit:
		return h, broken(9, "the manifest claims %d bytes, the limit is %d", n, limit).At(32).WithHint(hintManifest)
	case h.storedManifest() < 0 || h.storedManifest() > bound(n):
		return h, broken(8, "the head claims %d bytes after its size field, want 28 to %d", h.size, headBytes-skipBytes+bound(n)).At(4)
	}
	return h, nil
}

// appendHead appends the head, which includes the manifest frame.
func appendHead(dst []byte, h head, frame []byte) []byte {
	dst = le.AppendUint32(dst, headMagic)
	dst = le.AppendUint32(dst, uint32(headBytes-skipBytes+len(frame)))
	dst = append(dst, signature...)
	dst = le.AppendUint16(dst, majorVersion)
	dst = le.AppendUint16(dst, h.minor)
	dst = le.AppendUint32(dst, h.critical)
	dst = le.AppendUint32(dst, h.ignorable)
	dst = append(dst, h.chunkLog2, 0, 0, 0)
	dst = le.AppendUint32(dst, h.manifestBytes)
	return append(dst, frame...)
}

// tail is the digests frame and the seek table, as they stand in the file, for c chunks.
type tail struct {
	buf []byte
	c   int64
}

func tailLen(c int64) int64    { return tailBytes + bytesPerChunk*c }
func digestsLen(c int64) int64 { return digestsBytes + digestBytes*c }

func (t *tail) seekTable() []byte { return t.buf[digestsLen(t.c):] }

func (t *tail) total() uint64         { return le.Uint64(t.buf[8:]) }
func (t *tail) setTotal(n int64)      { le.PutUint64(t.buf[8:], uint64(n)) }
func (t *tail) headDigest() []byte    { return t.buf[16:48] }
func (t *tail) contentID() []byte     { return t.buf[48:80] }
func (t *tail) digest(i int64) []byte { return t.buf[digestsBytes+digestBytes*i:][:digestBytes] }

// entry returns the compressed and the decompressed size in entry i of the seek table. Entry 0 is
// the head, entry c+1 the digests frame.
func (t *tail) entry(i int64) (stored, raw uint32) {
	e := t.seekTable()[skipBytes+seekEntryBytes*i:]
	return le.Uint32(e), le.Uint32(e[4:])
}

// expect is what a tail is checked against: the head, the manifest, and the known facts about the
// file.
type expect struct {
	plan   *plan
	head   int64    // length of the head
	digest [32]byte // SHA-256 of the head
	off    int64    // where the tail begins
	// stored returns the length of chunk frame i if the frames have been read. It is nil if only
	// the seek table tells.
	stored func(i int64) int64
}

// check returns every violation of R58 to R60 and R63 to R66, in the order of the bytes. located is
// false if the entries of the seek table cannot be right.
func (t *tail) check(x *expect) (errs []error, located bool) {
	add := func(at int64, e *fault.Error) { errs = append(errs, e.At(x.off+at)) }
	if magic, size := le.Uint32(t.buf), le.Uint32(t.buf[4:]); magic != digestsMagic || int64(size) != digestsLen(t.c)-skipBytes {
		add(0, broken(58, "digests frame with magic %08x and size %d, want %08x and %d", magic, size, digestsMagic, digestsLen(t.c)-skipBytes))
	}
	if t.total() != uint64(x.plan.total) {
		add(8, broken(59, "the digests frame counts %d raw bytes, the manifest %d", t.total(), x.plan.total))
	}
	if !bytes.Equal(t.headDigest(), x.digest[:]) {
		add(16, broken(60, "the SHA-256 of the head is %x, the digests frame says %x", x.digest, t.headDigest()))
	}
	at, s := digestsLen(t.c), t.seekTable()
	want := int64(len(s)) - skipBytes
	if magic, size := le.Uint32(s), le.Uint32(s[4:]); magic != seekMagic || int64(size) != want {
		add(at, broken(63, "seek table with magic %08x and size %d, want %08x and %d", magic, size, seekMagic, want))
	}
	end := s[len(s)-seekTailBytes:]
	at += int64(len(s)) - seekTailBytes
	if n := le.Uint32(end); int64(n) != t.c+2 {
		add(at, broken(63, "the seek table counts %d frames, want %d", n, t.c+2))
	}
	if end[4] != 0 {
		add(at+4, broken(64, "descriptor %02x, want 00", end[4]))
	}
	if magic := le.Uint32(end[5:]); magic != seekEndMagic {
		add(at+5, broken(63, "end magic %08x, want %08x", magic, uint32(seekEndMagic)))
	}
	bad := t.checkEntries(x, add)
	return errs, !bad
}

// checkEntries checks R65 and R66, and R16 for chunk frames that have not been read.
func (t *tail) checkEntries(x *expect, add func(int64, *fault.Error)) (bad bool) {
	var sum int64
	for i := range t.c + 2 {
		stored, raw := t.entry(i)
		at := digestsLen(t.c) + skipBytes + seekEntryBytes*i
		wantStored, wantRaw := int64(-1), int64(0)
		switch {
		case i == 0:
			wantStored = x.head
		case i == t.c+1:
			wantStored = digestsLen(t.c)
		default:
			wantRaw = x.plan.chunk(i - 1).n
			if x.stored != nil {
				wantStored = x.stored(i - 1)
			}
		}
		if int64(raw) != wantRaw {
			add(at+4, broken(65, "the seek table gives %s %d decompressed bytes, want %d", frameName(i, t.c), raw, wantRaw))
		}
		switch {
		case wantStored >= 0 && int64(stored) != wantStored:
			add(at, broken(66, "the seek table gives %s %d bytes, want %d", frameName(i, t.c), stored, wantStored))
			bad = true
		case wantStored < 0 && int64(stored) > bound(wantRaw):
			add(at, broken(16, "the seek table gives %s %d bytes, the limit for %d raw bytes is %d", frameName(i, t.c), stored, wantRaw, bound(wantRaw)))
			bad = true
		}
		sum += int64(stored)
	}
	if want := x.off + digestsLen(t.c); !bad && sum != want {
		add(digestsLen(t.c), broken(66, "the sizes in the seek table add up to %d bytes, but %d bytes precede it", sum, want))
		bad = true
	}
	return bad
}

// index replaces the entry of every chunk in a checked seek table by the offset where its frame
// ends. A reader then needs nothing but the 40 bytes per chunk of the tail.
func (t *tail) index() {
	var off int64
	for i := range t.c + 1 {
		stored, _ := t.entry(i)
		off += int64(stored)
		le.PutUint64(t.seekTable()[skipBytes+seekEntryBytes*i:], uint64(off))
	}
}

// span returns where the frame of chunk i lies in the file, after index.
func (t *tail) span(i int64) (off, end int64) {
	s := t.seekTable()[skipBytes+seekEntryBytes*i:]
	return int64(le.Uint64(s)), int64(le.Uint64(s[seekEntryBytes:]))
}

// newTail returns a tail for c chunks with every field that depends on c alone.
func newTail(c int64) *tail {
	t := &tail{buf: make([]byte, tailLen(c)), c: c}
	le.PutUint32(t.buf, digestsMagic)
	le.PutUint32(t.buf[4:], uint32(digestsLen(c)-skipBytes))
	s := t.seekTable()
	le.PutUint32(s, seekMagic)
	le.PutUint32(s[4:], uint32(len(s)-skipBytes))
	t.setEntry(c+1, digestsLen(c), 0)
	end := s[len(s)-seekTailBytes:]
	le.PutUint32(end, uint32(c+2))
	le.PutUint32(end[5:], seekEndMagic)
	return t
}

// setEntry sets the compressed and the decompressed size in entry i of the seek table.
func (t *tail) setEntry(i, stored, raw int64) {
	e := t.seekTable()[skipBytes+seekEntryBytes*i:]
	le.PutUint32(e, uint32(stored))
	le.PutUint32(e[4:], uint32(raw))
}

// frameName names frame i of a file with c chunks.
func frameName(i, c int64) string {
	switch i {
	case 0:
		return "the head"
	case c + 1:
		return "the digests frame"
	}
	return fmt.Sprintf("chunk %d", i-1)
}
