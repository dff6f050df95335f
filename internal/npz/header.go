package npz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// header is the beginning of a .npy file: a magic string, a version, a length, and a Python
// dictionary of that length, as numpy.lib.format describes it.
type header struct {
	dtype     dtype.Type
	isFortran bool
	shape     []uint64
	nBytes    int64 // of all that precedes the values
}

const (
	magic = "\x93NUMPY"
	// maxHeaderBytes bounds the dictionary. NumPy bounds it by 10,000.
	maxHeaderBytes = 1 << 16
	// maxDims is NumPy's bound on dimensions.
	maxDims = 64
)

// readHeader reads the header of an entry of size unpacked bytes, and checks that its values fill
// the rest.
func readHeader(r io.Reader, entry string, size uint64) (h header, err error) {
	text, nBytes, err := readDict(r, entry, size)
	if err != nil {
		return h, err
	}
	h.nBytes = nBytes
	p := &dict{entry: entry, text: text}
	if err := p.parse(&h); err != nil {
		return h, err
	}
	n, ok := dtype.NElements(h.shape)
	want, fits := h.dtype.NBytes(n)
	switch {
	case !ok || !fits:
		return h, fault.New(fault.Limit, "%q has shape %d, which has too many elements", entry, h.shape)
	case uint64(want) > size-uint64(nBytes):
		return h, fault.New(fault.Truncated, "%q claims %d bytes of values, and its entry has %d",
			entry, want, size-uint64(nBytes)).
			WithHint("the file was not written or downloaded completely; fetch it again")
	case uint64(want) < size-uint64(nBytes):
		return h, fault.New(fault.Corrupt, "%q claims %d bytes of values, and its entry has %d",
			entry, want, size-uint64(nBytes))
	}
	return h, nil
}

// readDict returns the dictionary and the number of bytes up to its end.
func readDict(r io.Reader, entry string, size uint64) (text string, nBytes int64, err error) {
	var start [12]byte
	lengthBytes := 2
	if err := fill(r, start[:8], entry); err != nil {
		return "", 0, err
	}
	switch major, minor := start[6], start[7]; {
	case !bytes.HasPrefix(start[:], []byte(magic)):
		return "", 0, fault.New(fault.Corrupt, "%q begins with %q, want the magic string of .npy", entry, start[:6])
	case major < 1 || major > 3 || minor != 0:
		return "", 0, fault.New(fault.Unsupported, "%q has version %d.%d of .npy, want 1.0, 2.0 or 3.0", entry, major, minor)
	case major > 1:
		lengthBytes = 4
	}
	if err := fill(r, start[8:8+lengthBytes], entry); err != nil {
		return "", 0, err
	}
	n := uint64(binary.LittleEndian.Uint32(start[8:])) // zeros follow a length of two bytes
	nBytes = int64(8 + lengthBytes)
	switch {
	case uint64(nBytes) > size || n > size-uint64(nBytes):
		return "", 0, fault.New(fault.Truncated, "%q claims a header of %d bytes, and its entry has %d bytes", entry, n, size)
	case n > maxHeaderBytes:
		return "", 0, fault.New(fault.Limit, "%q claims a header of %d bytes, the limit is %d", entry, n, maxHeaderBytes)
	}
	p := make([]byte, n)
	err = fill(r, p, entry)
	return string(p), nBytes + int64(n), err
}

// fill reads all of p.
func fill(r io.Reader, p []byte, entry string) error {
	_, err := io.ReadFull(r, p)
	var known *fault.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Truncated, "%q ends within its header", entry).
			WithHint("the file was not written or downloaded completely; fetch it again")
	}
	return fault.New(fault.Corrupt, "%q cannot be read: %v", entry, err)
}

// types maps the descriptions of little-endian numbers. NumPy has no bfloat16: MLX writes its as
// V2, two bytes of anything, and so does ml_dtypes.
var types = map[string]dtype.Type{
	"<f8": dtype.F64, "<f4": dtype.F32, "<f2": dtype.F16, "<V2": dtype.BF16, "|V2": dtype.BF16,
	"<i8": dtype.I64, "<i4": dtype.I32, "<i2": dtype.I16, "|i1": dtype.I8,
	"<u8": dtype.U64, "<u4": dtype.U32, "<u2": dtype.U16, "|u1": dtype.U8, "|b1": dtype.BOOL,
	"<i1": dtype.I8, "<u1": dtype.U8, "<b1": dtype.BOOL,
}

// dict parses the dictionary: the literals of Python that NumPy and MLX write, and no others.
type dict struct {
	entry, text string
	at          int
}

func (p *dict) parse(h *header) error {
	has := make(map[string]bool)
	if !p.skip('{') {
		return p.wrong("a dictionary")
	}
	for !p.skip('}') {
		key, ok := p.word()
		if !ok || !p.skip(':') {
			return p.wrong("a key in quotes and a colon")
		}
		if has[key] {
			return fault.New(fault.Corrupt, "the header of %q has %q twice", p.entry, key)
		}
		has[key] = true
		if err := p.value(h, key); err != nil {
			return err
		}
		if !p.skip(',') && !p.sees('}') {
			return p.wrong("a comma or the end of the dictionary")
		}
	}
	if p.space(); p.at < len(p.text) {
		return p.wrong("nothing more")
	}
	for _, key := range []string{"descr", "fortran_order", "shape"} {
		if !has[key] {
			return fault.New(fault.Corrupt, "the header of %q lacks %q", p.entry, key)
		}
	}
	return nil
}

func (p *dict) value(h *header, key string) error {
	switch key {
	case "descr":
		return p.descr(h)
	case "fortran_order":
		var ok bool
		if h.isFortran, ok = p.boolean(); !ok {
			return p.wrong("True or False")
		}
		return nil
	case "shape":
		return p.shape(h)
	}
	return fault.New(fault.Corrupt, "the header of %q has the unknown key %q", p.entry, key)
}

func (p *dict) descr(h *header) error {
	if p.sees('[') {
		return fault.New(fault.Unsupported, "%q is an array of records, not of numbers", p.entry)
	}
	name, ok := p.word()
	if !ok {
		return p.wrong("the type of the numbers in quotes")
	}
	if h.dtype, ok = types[name]; ok {
		return nil
	}
	e := fault.New(fault.Unsupported, "%q has numbers of type %q, which no tensor has", p.entry, name)
	switch {
	case strings.HasPrefix(name, "|O"):
		e.Msg = "\"" + p.entry + "\" is an array of Python objects, which would be run to read it"
		e.Hint = "load it where you trust it, and save the arrays of numbers in it"
	case strings.HasPrefix(name, ">"):
		e.Hint = "its numbers are big-endian: load it with NumPy, and save x.astype(x.dtype.newbyteorder('<'))"
	}
	return e
}

func (p *dict) shape(h *header) error {
	const want = "a tuple of whole numbers"
	if !p.skip('(') {
		return p.wrong(want)
	}
	hasComma := true
	for !p.skip(')') {
		n, ok := p.number()
		switch {
		case !ok || !hasComma:
			return p.wrong(want)
		case len(h.shape) == maxDims:
			return fault.New(fault.Limit, "%q has more than %d dimensions", p.entry, maxDims)
		}
		h.shape = append(h.shape, n)
		if hasComma = p.skip(','); !hasComma && len(h.shape) == 1 {
			return p.wrong(want) // (3) is a number in Python
		}
	}
	return nil
}

// wrong returns the error for a text other than want.
func (p *dict) wrong(want string) error {
	rest := p.text[p.at:]
	return fault.New(fault.Corrupt, "the header of %q has %q, want %s", p.entry, rest[:min(len(rest), 20)], want)
}

func (p *dict) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

func (p *dict) sees(c byte) bool {
	p.space()
	return p.at < len(p.text) && p.text[p.at] == c
}

func (p *dict) skip(c byte) bool {
	if !p.sees(c) {
		return false
	}
	p.at++
	return true
}

// word reads a string without escapes.
func (p *dict) word() (string, bool) {
	for _, quote := range []byte{'\'', '"'} {
		if !p.sees(quote) {
			continue
		}
		text, _, ok := strings.Cut(p.text[p.at+1:], string(quote))
		if !ok || strings.ContainsAny(text, "\\\n") {
			return "", false
		}
		p.at += len(text) + 2
		return text, true
	}
	return "", false
}

func (p *dict) boolean() (value, ok bool) {
	p.space()
	for text, value := range map[string]bool{"True": true, "False": false} {
		if strings.HasPrefix(p.text[p.at:], text) {
			p.at += len(text)
			return value, true
		}
	}
	return false, false
}

// number reads digits, and the L that Python 2 put behind them.
func (p *dict) number() (uint64, bool) {
	p.space()
	rest := p.text[p.at:]
	digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	n, err := strconv.ParseUint(digits, 10, 64)
	if p.at += len(digits); strings.HasPrefix(p.text[p.at:], "L") {
		p.at++
	}
	return n, err == nil
}
