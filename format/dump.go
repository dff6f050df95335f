package format

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format/dtype"
)

// Dump explains every byte of a .lora file: offset, bytes in hex, meaning. A line that begins with
// # explains the lines after it. Long blocks are shortened.
//
// Dump writes as much of a broken file as it understands, with each error at its place; it returns
// the errors too. It checks checksums but no digests: see Verify. The manifest may be as large as a
// Reader allows by default. Dump needs memory for the manifest, two chunks, and 40 bytes per chunk.
// It stops with the context's error when ctx ends.
func Dump(ctx context.Context, w io.Writer, r io.ReaderAt, size int64) error {
	out := bufio.NewWriter(w)
	d := dumper{w: out, r: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), streamBuffer)}
	d.file(ctx)
	return errors.Join(errors.Join(d.errs...), out.Flush())
}

type dumper struct {
	w    *bufio.Writer
	r    *bufio.Reader
	off  int64 // where the next line begins
	errs []error
}

// A line shows lineBytes bytes. Of a field longer than wholeBytes, only shortBytes are shown.
const (
	lineBytes  = 16
	shortBytes = 2 * lineBytes
	wholeBytes = 512
)

// line writes a field at d.off and advances d.off. The description may be empty.
func (d *dumper) line(p []byte, format string, args ...any) {
	words, shown := fmt.Sprintf(format, args...), p
	if len(p) > wholeBytes {
		shown = p[:shortBytes]
	}
	for at := 0; at < len(shown); at += lineBytes {
		hex := fmt.Sprintf("% x", shown[at:min(at+lineBytes, len(shown))])
		fmt.Fprintln(d.w, strings.TrimRight(fmt.Sprintf("%08x  %-*s  %s", d.off+int64(at), 3*lineBytes-1, hex, words), " "))
		words = ""
	}
	if len(shown) < len(p) {
		fmt.Fprintf(d.w, "          … %d bytes more\n", len(p)-len(shown))
	}
	d.off += int64(len(p))
}

// note writes a line of text without bytes.
func (d *dumper) note(format string, args ...any) { fmt.Fprintf(d.w, "# "+format+"\n", args...) }

// fail writes an error and keeps it.
func (d *dumper) fail(err error) {
	if err != nil {
		d.errs = append(d.errs, err)
		d.note("error: %v", err)
	}
}

func (d *dumper) file(ctx context.Context) {
	pro, err := d.head()
	if err != nil {
		d.fail(err)
		return
	}
	frames := newDecoder(1)
	defer frames.close()
	var m room
	m.grow(pro.plan.largest)
	var ends []int64
	for i := range pro.plan.chunks {
		if err := ctx.Err(); err != nil {
			d.errs = append(d.errs, err)
			return
		}
		c := pro.plan.chunk(i)
		d.note("chunk %d: %s", i, describe(pro, c))
		at := d.off
		m.stored, err = readFrame(d.r, m.stored, at, c.n)
		d.frame(m.stored)
		if err != nil {
			d.fail(about(err, fmt.Sprintf("chunk %d", i)))
			return
		}
		ends = append(ends, d.off)
		d.fail(m.decode(frames, c, i, at))
	}
	d.tail(pro, ends)
}

// head writes the head and returns its content.
func (d *dumper) head() (*prologue, error) {
	p, err := appendN(nil, d.r, headBytes)
	if err != nil && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	h, err := parseHead(p, ReaderOptions{}.manifestLimit())
	d.note("head")
	if len(p) < headBytes || string(p[8:16]) != signature {
		d.line(p, "")
		return nil, err
	}
	d.line(p[:4], "magic of the head")
	d.line(p[4:8], "size: %d bytes follow", le.Uint32(p[4:]))
	d.line(p[8:16], "signature")
	d.line(p[16:18], "major version %d", le.Uint16(p[16:]))
	d.line(p[18:20], "minor version %d", le.Uint16(p[18:]))
	d.line(p[20:24], "critical features")
	d.line(p[24:28], "ignorable features")
	d.line(p[28:29], "chunks of 2^%d bytes", p[28])
	d.line(p[29:32], "reserved")
	d.line(p[32:36], "the manifest has %d bytes", le.Uint32(p[32:]))
	if err != nil {
		return nil, err
	}
	if p, err = appendN(p, d.r, h.storedManifest()); err != nil {
		d.line(p[headBytes:], "")
		return nil, cutOff(err, d.off, "inside the head")
	}
	d.note("manifest")
	d.frame(p[headBytes:])
	text, err := manifestText(h, p)
	if err != nil {
		return nil, err
	}
	d.manifest(text)
	pro, err := parsePrologue(h, p, ReaderOptions{MaxRawBytes: maxRawBytes})
	if err != nil {
		return nil, err
	}
	for _, n := range pro.manifest.Notes {
		d.note("note: %q", n)
	}
	return pro, nil
}

// manifest writes the text of a manifest, one record per line.
func (d *dumper) manifest(text string) {
	quoted, start := false, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == '{' && !quoted && i > start && (text[i-1] == ',' || text[i-1] == '['):
			d.note("%s", printable(text[start:i]))
			start = i
		}
	}
	d.note("%s", printable(text[start:]))
}

// printable escapes control characters, which could drive a terminal.
func printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "<U+%04X>", r)
		}
	}
	return b.String()
}

// describe gives the size, dtype, coding and tensors of a chunk.
func describe(pro *prologue, c chunk) string {
	var b strings.Builder
	if c.dtype == dtype.Invalid {
		fmt.Fprintf(&b, "%d bytes, attachments", c.n)
	} else {
		fmt.Fprintf(&b, "%d bytes of %v, coding %s", c.n, c.dtype, codingNames[c.coding])
	}
	n := 0
	for piece := range pro.plan.pieces(c) {
		if n++; n > 3 {
			continue
		}
		fmt.Fprintf(&b, ", %q from %d", blobNames(pro.manifest, piece.blob), piece.off)
	}
	if n > 3 {
		fmt.Fprintf(&b, " and %d more", n-3)
	}
	return b.String()
}

func blobNames(m *Manifest, i int) string {
	if i < len(m.Tensors) {
		return m.Tensors[i].Name
	}
	return m.Attachments[i-len(m.Tensors)].Name
}

var blockNames = []string{rawBlock: "raw", rleBlock: "RLE", compressedBlock: "compressed", reservedBlock: "reserved"}

// frame writes a data frame, or as much of it as there is.
func (d *dumper) frame(p []byte) {
	take := func(n int64, format string, args ...any) bool {
		whole := int64(len(p)) >= n
		n = min(n, int64(len(p)))
		d.line(p[:n], format, args...)
		p = p[n:]
		return whole
	}
	if len(p) < prefixBytes {
		take(prefixBytes, "")
		return
	}
	width := int64(sizeWidth(p[4]))
	take(4, "magic of a data frame")
	take(1, "descriptor")
	if int64(len(p)) < width {
		take(width, "")
		return
	}
	take(width, "content size %d", contentSize(p[:width]))
	for last := false; !last && len(p) > 0; {
		if len(p) < blockBytes {
			take(blockBytes, "")
			return
		}
		b := parseBlock(p)
		last = b.last
		lead := ""
		if last {
			lead = "last "
		}
		take(blockBytes, "%s%s block of %d bytes", lead, blockNames[b.kind], b.size)
		words := ""
		if b.kind == compressedBlock {
			words = literals(p)
		}
		take(b.stored, "%s", words)
	}
	if len(p) > 0 {
		take(checksumBytes, "checksum")
	}
	if len(p) > 0 {
		take(int64(len(p)), "after the frame")
	}
}

// literals describes the literals section at the beginning of a compressed block (RFC 8878, section
// 3.1.1.3.1).
func literals(p []byte) string {
	if len(p) < 5 {
		return ""
	}
	h := le.Uint64(append(bytes.Clone(p[:5]), 0, 0, 0))
	name := []string{"raw", "RLE", "Huffman", "treeless"}[h&3]
	format := h >> 2 & 3
	var n uint64
	switch {
	case h&3 < 2:
		n = []uint64{h >> 3 & 0x1f, h >> 4 & 0xfff, h >> 3 & 0x1f, h >> 4 & 0xfffff}[format]
	default:
		n = h >> 4 & []uint64{0x3ff, 0x3ff, 0x3fff, 0x3ffff}[format]
	}
	return fmt.Sprintf("%s literals, %d bytes", name, n)
}

// tail writes the digests and the seek table. ends holds the offsets where the chunk frames end.
func (d *dumper) tail(pro *prologue, ends []int64) {
	c := pro.plan.chunks
	p, err := appendN(nil, d.r, tailLen(c))
	if err != nil {
		d.note("digests and seek table, %d of %d bytes", len(p), tailLen(c))
		d.line(p, "")
		d.fail(cutOff(err, d.off, "inside the digests or the seek table"))
		return
	}
	t := &tail{buf: p, c: c}
	off := d.off
	d.note("digests")
	d.line(p[:4], "magic of the digests")
	d.line(p[4:8], "size: %d bytes follow", le.Uint32(p[4:]))
	d.line(p[8:16], "%d raw bytes", t.total())
	d.line(t.headDigest(), "SHA-256 of the head")
	d.line(t.contentID(), "content id")
	for i := range c {
		d.line(t.digest(i), "SHA-256 of chunk %d", i)
	}
	d.note("seek table")
	s := t.seekTable()
	d.line(s[:4], "magic of the seek table")
	d.line(s[4:8], "size: %d bytes follow", le.Uint32(s[4:]))
	for i := range c + 2 {
		stored, raw := t.entry(i)
		d.line(s[skipBytes+seekEntryBytes*i:][:seekEntryBytes], "%s: %d stored, %d raw bytes", frameName(i, c), stored, raw)
	}
	end := s[len(s)-seekTailBytes:]
	d.line(end[:4], "%d frames", le.Uint32(end))
	d.line(end[4:5], "descriptor")
	d.line(end[5:], "end magic")
	errs, _ := t.check(&expect{plan: pro.plan, head: pro.bytes, digest: pro.digest, off: off, stored: func(i int64) int64 {
		if i == 0 {
			return ends[0] - pro.bytes
		}
		return ends[i] - ends[i-1]
	}})
	for _, err := range errs {
		d.fail(err)
	}
	if _, err := d.r.Peek(1); err != io.EOF {
		if err == nil {
			err = broken(2, "the file goes on after the seek table").At(d.off)
		}
		d.fail(err)
	}
}
