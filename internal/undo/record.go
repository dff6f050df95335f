package undo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strconv"
	"sync"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
)

const (
	version         = 2 // of the records that Writer writes; it reads version 1, too
	method          = "other:undo"
	descriptionName = "undo.json"
	headerName      = "headers/" // followed by the index of the file
	sideName        = "side/"    // followed by the index of the file beside the weights

	planarMark          = math.MaxUint32
	maxDescriptionBytes = 64 << 20
	minBlockBytes       = 512 << 10 // of a block smaller than its tensor
)

// An entry of a table holds three lengths, the CRC-32 of the block after the merge, and a sum of
// the block before it: its SHA-256 in version 1, its CRC-32C in version 2.
const (
	beforeAt   = 16
	entryBytes = beforeAt + crc32.Size
)

// Sum returns the sum of a block's values before the merge, in records of version 2.
func Sum(values []byte) uint32 { return crc32.Checksum(values, castagnoli) }

// castagnoli is the polynomial of CRC-32C, for which processors have an instruction.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// entryBytes returns the length of a table's entry.
func (r *Record) entryBytes() int64 {
	if r.Version == 1 {
		return beforeAt + sha256.Size
	}
	return entryBytes
}

// sumOf returns the sum of a block's values before the merge, as an entry holds it.
func (r *Record) sumOf(values []byte) []byte {
	if r.Version == 1 {
		sum := sha256.Sum256(values)
		return sum[:]
	}
	return le.AppendUint32(nil, Sum(values))
}

// ruleKinds holds the kind of error that spec/UNDO.md gives each rule, by its number.
var ruleKinds = [...]fault.Kind{
	1: fault.Corrupt, 2: fault.Unsupported, 3: fault.Corrupt, 4: fault.Corrupt, 5: fault.Corrupt, 6: fault.Corrupt, 7: fault.Corrupt,
	8: fault.Corrupt, 9: fault.Limit, 10: fault.Corrupt, 11: fault.Corrupt, 12: fault.Corrupt, 13: fault.Corrupt, 14: fault.Mismatch,
	15: fault.Mismatch, 16: fault.Corrupt, 17: fault.Corrupt, 18: fault.Mismatch,
}

// The rules that package merge checks.
const (
	RuleBefore = "U5"  // the header from before lists the same tensors as the header after
	RuleRest   = "U13" // there are as many sums as ranges
	RuleHeader = "U14" // the headers are those that the merge wrote
	RuleValues = "U15" // the values are those that the merge wrote
	RuleShape  = "U17" // the header from before lacks only tensors and rows of the header after
	RuleSide   = "U18" // the files beside the weights are those that the merge wrote
)

// Is reports whether a source is an undo record.
func Is(src format.Source) bool {
	m := src.Manifest()
	return len(m.Adapters) == 1 && m.Adapters[0].Method == method
}

// Record is an open undo record. Several goroutines may call its methods at once.
type Record struct {
	Description
	src     format.Source
	blobs   []int // for each tensor, the index of its stream
	headers []int // for each file, the index of its header among the blobs
	sides   []int // for each file beside the weights, the index of its content
	tables  []table
}

// table is the end of a stream. It has one entry per block.
type table struct {
	once  sync.Once
	err   error
	bytes []byte
	width int64   // of an entry
	offs  []int64 // of the payloads
}

// Open checks the claims of a record. The caller keeps src open while it uses the record.
func Open(src format.Source) (*Record, error) {
	m := src.Manifest()
	if !Is(src) {
		return nil, broken(1, "this is an adapter, want an undo record").WithHint("give the file that merge wrote to Options.Undo")
	}
	a := &m.Adapters[0]
	if len(a.Layers) > 0 {
		return nil, broken(1, "the undo record has layers, want none")
	}
	if !slices.ContainsFunc(a.Requires, func(r format.Requirement) bool { return r.Feature == format.FeatureUndo }) {
		return nil, broken(1, "the undo record does not require the feature %q", format.FeatureUndo)
	}
	for i := range a.Beside {
		if a.Beside[i].Action != format.Opaque {
			return nil, broken(1, "the undo record replaces tensors, want only opaque ones")
		}
	}
	r := &Record{src: src}
	if err := r.readDescription(m); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return r, r.find(m)
}

func (r *Record) readDescription(m *format.Manifest) error {
	for i := range m.Attachments {
		a := &m.Attachments[i]
		if a.Name != descriptionName {
			continue
		}
		if a.NBytes > maxDescriptionBytes {
			return broken(9, "%s has %d bytes, the limit is %d", descriptionName, a.NBytes, maxDescriptionBytes)
		}
		text := make([]byte, a.NBytes)
		if err := r.src.ReadBlobAt(text, len(m.Tensors)+i, 0); err != nil {
			return err
		}
		var v struct {
			Version *int `json:"undo"`
		}
		if err := jsontext.Decode(text, &v); err != nil || v.Version == nil {
			return broken(3, "%s is not a JSON object with the member \"undo\": %v", descriptionName, err)
		}
		if *v.Version < 1 || *v.Version > version {
			return broken(2, "the undo record has version %d, this reader knows 1 to %d", *v.Version, version).WithHint("use a newer loratool")
		}
		if err := jsontext.DecodeExact(text, &r.Description); err != nil {
			return broken(3, "%s: %v", descriptionName, err)
		}
		return nil
	}
	return broken(3, "the undo record lacks the attachment %s", descriptionName)
}

// find pairs the description with streams and headers. Nothing may be left over.
func (r *Record) find(m *format.Manifest) error {
	if len(m.Tensors) != len(r.Tensors) {
		return broken(6, "the undo record has %d streams for %d tensors", len(m.Tensors), len(r.Tensors))
	}
	r.blobs, r.headers = make([]int, len(r.Tensors)), make([]int, len(r.Files))
	r.tables = make([]table, len(r.Tensors))
	byName := make(map[string]int, len(m.Tensors))
	for i := range m.Tensors {
		byName[m.Tensors[i].Name] = i
	}
	for i := range r.Tensors {
		blob, ok := byName[strconv.Itoa(i)]
		if !ok {
			return broken(6, "tensor %d has no stream", i)
		}
		s := &m.Tensors[blob]
		if s.DType != dtype.U8 || len(s.Shape) != 1 || s.NBytes()/r.entryBytes() < r.Tensors[i].Blocks() {
			return broken(11, "the stream of %q is %v of shape %d, want U8 with %d entries of %d bytes", r.Tensors[i].Name, s.DType, s.Shape, r.Tensors[i].Blocks(), r.entryBytes())
		}
		r.blobs[i] = blob
	}
	for i := range r.Files {
		f := &r.Files[i]
		if !f.Changed() {
			continue
		}
		if r.headers[i] = attachment(m, headerName, i, f.Before.Bytes); r.headers[i] < 0 {
			return broken(5, "the undo record lacks the header of %d bytes for file %q", f.Before.Bytes, f.Name)
		}
	}
	r.sides = make([]int, len(r.Side))
	for i := range r.Side {
		s := &r.Side[i]
		if r.sides[i] = attachment(m, sideName, i, s.Before.Bytes); r.sides[i] < 0 {
			return broken(17, "the undo record lacks the %d bytes of %q from before the merge", s.Before.Bytes, s.Name)
		}
	}
	return nil
}

// attachment returns the index among the blobs of the attachment of nBytes bytes with a name and a
// number, or −1.
func attachment(m *format.Manifest, name string, number int, nBytes int64) int {
	name += strconv.Itoa(number)
	i := slices.IndexFunc(m.Attachments, func(a format.Attachment) bool { return a.Name == name && a.NBytes == nBytes })
	if i < 0 {
		return i
	}
	return len(m.Tensors) + i
}

// HeaderBytes returns the header that a changed file had before the merge.
func (r *Record) HeaderBytes(file int) ([]byte, error) {
	f := &r.Files[file]
	return r.read(r.headers[file], f.Before, 5, "the header of "+fault.Quote(f.Name))
}

// SideBytes returns the content that a file beside the weights had before the merge.
func (r *Record) SideBytes(side int) ([]byte, error) {
	s := &r.Side[side]
	return r.read(r.sides[side], s.Before, 17, fault.Quote(s.Name))
}

// read reads a blob, which has the length of want, and checks its digest.
func (r *Record) read(blob int, want Header, rule int, what string) ([]byte, error) {
	raw := make([]byte, want.Bytes)
	if err := r.src.ReadBlobAt(raw, blob, 0); err != nil {
		return nil, err
	}
	if got := HeaderOf(raw); got != want {
		return nil, broken(rule, "%s has SHA-256 %s, the record says %s", what, got.SHA256, want.SHA256)
	}
	return raw, nil
}

// StreamBytes returns the length of a tensor's stream before compression.
func (r *Record) StreamBytes(tensor int) int64 {
	return r.src.Manifest().Tensors[r.blobs[tensor]].NBytes()
}

// load reads the table of a tensor's stream, once.
func (r *Record) load(tensor int) (*table, error) {
	t := &r.tables[tensor]
	t.once.Do(func() { t.err = r.readTable(tensor, t) })
	return t, t.err
}

func (r *Record) readTable(tensor int, t *table) error {
	d, n := &r.Tensors[tensor], r.Tensors[tensor].Blocks()
	t.width = r.entryBytes()
	t.bytes = make([]byte, n*t.width)
	end := r.StreamBytes(tensor) - int64(len(t.bytes))
	if err := r.src.ReadBlobAt(t.bytes, r.blobs[tensor], end); err != nil {
		return err
	}
	t.offs = make([]int64, n)
	off := int64(0)
	for i := range n {
		t.offs[i] = off
		marks, sizes, escapes, _ := t.lengths(i)
		if marks+sizes+escapes > min(d.Block, d.Elements()-i*d.Block)*int64(d.width()) {
			return broken(11, "block %d of %q has %d bytes of residuals, more than its values", i, d.Name, marks+sizes+escapes)
		}
		off += marks + sizes + escapes
	}
	if off != end {
		return broken(11, "the blocks of %q take %d bytes, but its stream has room for %d", d.Name, off, end)
	}
	return nil
}

func (t *table) entry(block int64) []byte { return t.bytes[block*t.width:][:t.width] }

// lengths returns the lengths of the three planes of a block.
func (t *table) lengths(block int64) (marks, sizes, escapes int64, planar bool) {
	e := t.entry(block)
	if le.Uint32(e) == planarMark {
		return 0, int64(le.Uint32(e[4:])), int64(le.Uint32(e[8:])), true
	}
	return int64(le.Uint32(e)), int64(le.Uint32(e[4:])), int64(le.Uint32(e[8:])), false
}

// Scratch is memory for one goroutine. The zero value is ready to use.
type Scratch struct {
	coded   coded
	payload []byte
}

// CheckMerged checks that the values of a block are those that the merge wrote.
func (r *Record) CheckMerged(tensor int, block int64, values []byte) error {
	t, err := r.load(tensor)
	if err != nil {
		return err
	}
	if got, want := crc32.ChecksumIEEE(values), le.Uint32(t.entry(block)[12:]); got != want {
		return broken(15, "%q differs from the merge's output: the block at element %d has CRC-32 %08x, the record says %08x",
			r.Tensors[tensor].Name, block*r.Tensors[tensor].Block, got, want).
			WithHint("the checkpoint was changed or damaged after the merge; only the unchanged output of the merge can be restored exactly")
	}
	return nil
}

// Restore replaces the predictions in p by the values before the merge and checks their sum. It
// returns how many predictions it corrected.
func (r *Record) Restore(s *Scratch, tensor int, block int64, p []byte) (nCorrected int64, err error) {
	t, err := r.load(tensor)
	if err != nil {
		return 0, err
	}
	d := &r.Tensors[tensor]
	marks, sizes, escapes, planar := t.lengths(block)
	if n := marks + sizes + escapes; int64(cap(s.payload)) < n {
		s.payload = make([]byte, n)
	}
	payload := s.payload[:marks+sizes+escapes]
	if err := r.src.ReadBlobAt(payload, r.blobs[tensor], t.offs[block]); err != nil {
		return 0, err
	}
	if planar && (sizes != int64(len(p)) || escapes != 0) {
		return 0, broken(12, "block %d of %q has %d bytes in planes, want %d", block, d.Name, sizes, len(p))
	}
	c := coded{marks: payload[:marks], sizes: payload[marks : marks+sizes], escapes: payload[marks+sizes:], planar: planar}
	nCorrected, err = c.decode(p, d.width())
	if err != nil {
		return 0, fmt.Errorf("block %d of %q: %w", block, d.Name, err)
	}
	if got, want := r.sumOf(p), t.entry(block)[beforeAt:]; !bytes.Equal(got, want) {
		return 0, broken(16, "block %d of %q cannot be restored: the result has the checksum %x, the record says %x", block, d.Name, got, want)
	}
	return nCorrected, nil
}

// Summary is the content of the table of a tensor's stream.
type Summary struct {
	Residuals     int64  // elements that were predicted wrong; an upper bound, because marks may only skip
	Before, After string // SHA-256 over the blocks' sums before the merge, and over their CRC-32 after it
}

// Summarise reads the table of a tensor's stream in pieces.
func (r *Record) Summarise(tensor int) (Summary, error) {
	const piece = 1 << 12 // entries read at a time
	n := r.Tensors[tensor].Blocks()
	end := r.StreamBytes(tensor)
	before, after := sha256.New(), sha256.New()
	var s Summary
	width := r.entryBytes()
	buf := make([]byte, width*min(piece, n))
	for i := int64(0); i < n; i += piece {
		p := buf[:width*min(piece, n-i)]
		if err := r.src.ReadBlobAt(p, r.blobs[tensor], end-(n-i)*width); err != nil {
			return s, err
		}
		for ; len(p) > 0; p = p[width:] {
			marks := le.Uint32(p)
			if marks == planarMark {
				marks = le.Uint32(p[4:]) / uint32(r.Tensors[tensor].width())
			}
			s.Residuals += int64(marks)
			after.Write(p[12:beforeAt])
			before.Write(p[beforeAt:width])
		}
	}
	s.Before, s.After = hex.EncodeToString(before.Sum(nil)), hex.EncodeToString(after.Sum(nil))
	return s, nil
}
