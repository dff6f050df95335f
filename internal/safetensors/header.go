// Package safetensors reads the header of a safetensors file strictly, and adds metadata to it
// without touching any other byte. Read comes before every other reader. A file that it accepts has
// valid UTF-8 throughout, no duplicate name, exactly the fields of the format, sizes that match
// dtype and shape, and data without gaps or overlaps up to the end of the file
// (github.com/huggingface/safetensors, README, "Format").
package safetensors

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/lookup"
)

const (
	// MaxHeaderBytes is the largest header that the format allows.
	MaxHeaderBytes = 100_000_000
	// maxDims bounds the dimensions of a tensor. NumPy and PyTorch allow 64.
	maxDims = 64
	// blockBytes is the unit in which file systems share data between files.
	blockBytes = 4096
	// minEntryBytes is the length of the shortest entry of a tensor. It bounds the number of
	// entries in a header.
	minEntryBytes = len(`"":{"dtype":"U8","shape":[],"data_offsets":[0,0]}`)
	// MetadataName is the key of the metadata among the names of the tensors.
	MetadataName = "__metadata__"
)

// Tensor is one entry of the header.
type Tensor struct {
	Name   string
	DType  dtype.Type
	Shape  []uint64
	Off    int64 // from the start of the file
	NBytes int64
}

// Elements returns the number of elements.
func (t *Tensor) Elements() int64 {
	n, _ := dtype.NElements(t.Shape) // checked in the header
	return int64(n)
}

// Header is a checked header.
type Header struct {
	DataOff  int64             // where the data begin: 8 + the length of the JSON text
	Tensors  []Tensor          // in the order of their data
	Metadata map[string]string // the text of __metadata__

	insertAt  int  // position in the JSON text at which to insert a metadata entry
	hasMeta   bool // whether insertAt lies in an existing __metadata__ object
	emptyMeta bool // whether that object has no entries yet
	nullMeta  bool // whether insertAt is at a null in place of the object
	noTensors bool
}

// Read reads and checks the header of a file of size bytes. It needs a small multiple of the
// header's size in memory, and keeps no more of the text than Header shows. An error is a
// *fault.Error without a path, or comes from r or from ctx, which is checked throughout a long
// header.
func Read(ctx context.Context, r io.ReaderAt, size int64) (*Header, error) {
	h, err := parse(ctx, r, size)
	if err != nil {
		return nil, err
	}
	return h, h.prove(size)
}

// ReadAlone is ReadStart for a header in memory.
func ReadAlone(header []byte) (*Header, error) {
	return ReadStart(context.Background(), bytes.NewReader(header), int64(len(header)))
}

// ReadStart is Read for a header without its data, which count as long as the tensors say. size is
// the size of the header.
func ReadStart(ctx context.Context, r io.ReaderAt, size int64) (*Header, error) {
	h, err := parse(ctx, r, size)
	if err != nil {
		return nil, err
	}
	whole := h.DataOff
	for i := range h.Tensors {
		whole += h.Tensors[i].NBytes
	}
	return h, h.prove(whole)
}

// parse scans the JSON text of a header.
func parse(ctx context.Context, r io.ReaderAt, size int64) (*Header, error) {
	text, err := readText(ctx, r, size)
	if err != nil {
		return nil, err
	}
	h := &Header{DataOff: 8 + int64(len(text))}
	if err := h.scan(newScanner(ctx, text)); err != nil {
		return nil, err
	}
	h.release(text)
	if len(text) >= collectBytes {
		runtime.GC()
	}
	return h, nil
}

// collectBytes is the length of a text that is collected as soon as it has been parsed. The heap
// may double before the collector runs by itself: for 700,000 tensors the text would stay until
// the plan is ready, and be a quarter of its memory.
const collectBytes = 16 << 20

// release copies the names of the tensors and the metadata out of the text. As substrings they
// would keep all of it in memory. If they make up most of the text, copies would cost more.
func (h *Header) release(text string) {
	names, metadata := 0, 0
	for i := range h.Tensors {
		names += len(h.Tensors[i].Name)
	}
	for key, value := range h.Metadata {
		metadata += len(key) + len(value)
	}
	if 4*(names+metadata) > 3*len(text) {
		return
	}
	var b strings.Builder
	b.Grow(names)
	for i := range h.Tensors {
		b.WriteString(h.Tensors[i].Name)
	}
	rest := b.String()
	for i := range h.Tensors {
		t := &h.Tensors[i]
		t.Name, rest = rest[:len(t.Name)], rest[len(t.Name):]
	}
	for key, value := range h.Metadata {
		h.Metadata[strings.Clone(key)] = strings.Clone(value) // the map takes the new key, too
	}
}

// readText returns the JSON text of the header.
func readText(ctx context.Context, r io.ReaderAt, size int64) (string, error) {
	start := make([]byte, min(size, 64))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), start); err != nil {
		return "", err
	}
	if e := RecogniseFile(start); e != nil {
		return "", e
	}
	if size < 10 {
		return "", fault.New(fault.Truncated, "%d bytes are too few for a safetensors file", size)
	}
	n := binary.LittleEndian.Uint64(start)
	switch {
	case n > MaxHeaderBytes && start[8] != '{':
		return "", fault.New(fault.Corrupt, "not a safetensors file: it begins with % x", start[:min(len(start), 16)])
	case n > MaxHeaderBytes:
		return "", fault.New(fault.Limit, "the header claims %d bytes, the format allows %d", n, MaxHeaderBytes)
	case n < 2:
		return "", fault.New(fault.Corrupt, "the header claims %d bytes, want at least 2", n)
	case n > uint64(size-8):
		return "", fault.New(fault.Truncated, "the header claims %d bytes, the file has %d after the length", n, size-8).
			WithHint("the file was not written or downloaded completely; fetch it again")
	}
	var b strings.Builder
	b.Grow(int(n))
	if _, err := io.CopyN(&b, under{ctx, io.NewSectionReader(r, 8, int64(n))}, int64(n)); err != nil {
		return "", err
	}
	text := b.String()
	if text[0] != '{' {
		return "", fault.New(fault.Corrupt, "the header begins with %q, want '{'", text[0]).At(8)
	}
	return text, nil
}

// under is a reader that stops when its context ends.
type under struct {
	ctx context.Context
	io.Reader
}

func (u under) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.Reader.Read(p)
}

// scan reads the whole JSON text.
func (h *Header) scan(s *scanner) error {
	var seen *lookup.Table
	nameAt := func(i int) string { return h.Tensors[i].Name }
	h.insertAt, h.noTensors = 1, true
	for at, name := range s.Object() {
		if name == MetadataName {
			if h.hasMeta {
				s.fail(at, "the name %q appears twice", name)
				break
			}
			h.scanMetadata(s)
			continue
		}
		if h.noTensors {
			rest := s.Rest()
			// Growing a list from nothing costs several times as much memory.
			most := min(strings.Count(rest, "{"), len(rest)/minEntryBytes) + 1
			seen, h.Tensors = lookup.New(most), make([]Tensor, 0, most)
		}
		h.noTensors = false
		if _, isNew := seen.Add(name, len(h.Tensors), nameAt); !isNew {
			s.fail(at, "the name %q appears twice", name)
			break
		}
		h.Tensors = append(h.Tensors, scanTensor(s, name))
	}
	if !s.Done() {
		s.fail(s.Pos(), "text after the header object")
	}
	return s.err()
}

func (h *Header) scanMetadata(s *scanner) {
	start := s.Pos()
	if s.Word("null") { // MLX writes null
		h.Metadata, h.nullMeta, h.insertAt = map[string]string{}, true, start
		return
	}
	n := 0
	for range s.Object() {
		s.Str()
		n++
	}
	s.Rewind(start)
	h.Metadata = make(map[string]string, n+n/4) // counted first, with room to spare: a map that grows costs twice as much
	h.hasMeta, h.insertAt = true, start+1
	for at, key := range s.Object() {
		if _, dup := h.Metadata[key]; dup {
			s.fail(at, "__metadata__ has the key %q twice", key)
		}
		h.Metadata[key] = s.Str()
	}
	h.emptyMeta = len(h.Metadata) == 0
}

// scanTensor reads {"dtype": …, "shape": […], "data_offsets": [begin, end]}. Off is relative to the
// data until prove.
func scanTensor(s *scanner, name string) Tensor {
	t := Tensor{Name: name}
	start := s.Pos()
	end, ok := s.usual(&t)
	if !ok {
		end = scanMembers(s, &t, start)
	}
	if s.Err() != nil {
		return t
	}
	t.NBytes = end - t.Off
	n, ok := dtype.NElements(t.Shape)
	want, ok2 := t.DType.NBytes(n)
	switch {
	case !ok || !ok2:
		s.fail(start, "tensor %q: %v of shape %d is not a whole number of bytes that a file can hold", name, t.DType, t.Shape)
	case want != t.NBytes:
		s.fail(start, "tensor %q: %v of shape %d takes %d bytes, data_offsets give it %d", name, t.DType, t.Shape, want, t.NBytes)
	}
	return t
}

// scanMembers reads the members of a tensor in any order, and returns the end of its data.
func scanMembers(s *scanner, t *Tensor, start int) (end int64) {
	name := t.Name
	var hasType, hasShape, hasOffsets bool
	for at, field := range s.Object() {
		switch field {
		case "dtype":
			s.once(at, name, field, &hasType)
			t.DType = s.dtype(at, name)
		case "shape":
			s.once(at, name, field, &hasShape)
			t.Shape = s.shape(at, name)
		case "data_offsets":
			s.once(at, name, field, &hasOffsets)
			t.Off, end = s.offsets(at, name)
		default:
			s.fail(at, "tensor %q has the unknown field %q", name, field)
		}
	}
	if !hasType || !hasShape || !hasOffsets {
		s.fail(start, "tensor %q lacks dtype, shape or data_offsets", name)
	}
	return end
}

// once fails if the tensor already has the field.
func (s *scanner) once(at int, name, field string, has *bool) {
	if *has {
		s.fail(at, "tensor %q has the field %q twice", name, field)
	}
	*has = true
}

func (s *scanner) dtype(at int, name string) dtype.Type {
	spelling := s.Str()
	d, ok := dtype.Parse(spelling)
	if !ok && s.Err() == nil {
		s.Fail(fault.New(fault.Unsupported, "tensor %q has the unknown dtype %q", name, spelling).At(int64(8 + at)))
	}
	return d
}

func (s *scanner) shape(at int, name string) []uint64 {
	return s.keep(s.numbers(maxDims, func() {
		s.Fail(fault.New(fault.Limit, "tensor %q has more than %d dimensions", name, maxDims).At(int64(8 + at)))
	}))
}

func (s *scanner) offsets(at int, name string) (begin, end int64) {
	off := s.numbers(2, func() { s.fail(at, "tensor %q has more than two data_offsets", name) })
	if len(off) != 2 || off[0] > off[1] {
		s.fail(at, "tensor %q has data_offsets %d, want begin and end", name, off)
		return 0, 0
	}
	return int64(off[0]), int64(off[1])
}

// prove sorts the tensors by position and checks in one pass that they fill the rest of the file.
func (h *Header) prove(size int64) error {
	slices.SortStableFunc(h.Tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Off, b.Off), cmp.Compare(a.NBytes, b.NBytes))
	})
	var next int64
	for i := range h.Tensors {
		t := &h.Tensors[i]
		if t.Off != next {
			if i == 0 {
				return fault.New(fault.Corrupt, "tensor %q begins at byte %d of the data, which leaves a gap after the header", t.Name, t.Off)
			}
			word := "leaves a gap after"
			if t.Off < next {
				word = "overlaps"
			}
			return fault.New(fault.Corrupt, "tensor %q begins at byte %d of the data and %s %q, which ends at %d", t.Name, t.Off, word, h.Tensors[i-1].Name, next)
		}
		next += t.NBytes
		t.Off += h.DataOff
	}
	switch have := size - h.DataOff; {
	case next > have:
		return fault.New(fault.Truncated, "the tensors take %d bytes, the file has %d", next, have).
			WithHint("the file was not written or downloaded completely; fetch it again")
	case next < have:
		return fault.New(fault.Corrupt, "%d bytes follow the last tensor", have-next).At(h.DataOff + next)
	}
	return nil
}

// WithMetadata returns the header bytes, length prefix included, with one more metadata entry. key
// must be new; raw is the file's own header of DataOff bytes. Every other byte of the text stays
// the same. The header grows by a whole number of 4096-byte blocks, padded with spaces as the
// format allows. So the data stay aligned, and a file system can still share blocks between the
// files.
func (h *Header) WithMetadata(raw []byte, key, value string) []byte {
	text, entry := raw[8:], h.entry(key, value)
	rest := text[h.insertAt:]
	if h.nullMeta {
		rest = rest[len("null"):]
	}
	grown := grownBy(len(entry))
	out := make([]byte, 8, len(raw)+grown)
	out = append(out, text[:h.insertAt]...)
	out = append(out, entry...)
	out = append(out, rest...)
	for len(out) < len(raw)+grown {
		out = append(out, ' ')
	}
	binary.LittleEndian.PutUint64(out, uint64(len(out)-8))
	return out
}

// Growth returns by how many bytes WithMetadata makes the header longer.
func (h *Header) Growth(key, value string) int { return grownBy(len(h.entry(key, value))) }

func grownBy(n int) int { return (n + blockBytes - 1) / blockBytes * blockBytes }

// entry returns the text that WithMetadata inserts.
func (h *Header) entry(key, value string) []byte {
	entry := appendString(nil, key)
	entry = append(entry, ':')
	entry = appendString(entry, value)
	if h.hasMeta && !h.emptyMeta {
		entry = append(entry, ',')
	}
	switch {
	case h.nullMeta:
		entry = append(append([]byte("{"), entry...), '}')
	case !h.hasMeta:
		entry = append(append([]byte(`"__metadata__":{`), entry...), '}')
		if !h.noTensors {
			entry = append(entry, ',')
		}
	}
	return entry
}

// WithoutMetadata returns the header bytes, length prefix included, without one metadata entry. raw
// is the file's own header; the length stays the same. The other entries keep their order and
// spelling, and spaces at the end replace the removed bytes.
func (h *Header) WithoutMetadata(raw []byte, key string) []byte {
	if _, ok := h.Metadata[key]; !ok {
		return raw
	}
	text := string(raw[8+h.insertAt-1:]) // from the opening of the metadata
	s := jsontext.New(text, jsontext.Strict)
	var kept []string
	for at, k := range s.Object() {
		s.Str()
		if k != key {
			kept = append(kept, text[at:s.Offset()])
		}
	}
	out := append(make([]byte, 0, len(raw)), raw[:8+h.insertAt]...)
	out = append(out, strings.Join(kept, ",")...)
	out = append(out, '}')
	out = append(out, text[s.Offset():]...)
	return append(out, bytes.Repeat([]byte(" "), len(raw)-len(out))...)
}
