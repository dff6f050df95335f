package undo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash/crc32"
	"io"
	"math"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/safetensors"
)

// Description identifies the merge that a record undoes.
type Description struct {
	Version  int       `json:"undo"`
	Tool     string    `json:"tool"`
	Adapters []Adapter `json:"adapters"` // in the order of the merge
	// Reading says how the adapters were applied where their files leave it open, in the words of
	// the program that merged.
	Reading map[string]string `json:"reading"`
	Files   []File            `json:"files"`   // all weight files of the checkpoint
	Tensors []Tensor          `json:"tensors"` // the tensors that the merge changed
	// Side lists the files beside the weights that the merge changed; nil in version 1.
	Side []Side `json:"side,omitempty"`
}

// Adapter is one adapter that was merged.
type Adapter struct {
	Name    string  `json:"name"`
	Content string  `json:"content"` // content id, spec/FORMAT.md, section 13
	Weight  float64 `json:"weight"`
}

// File is a weight file before and after the merge.
type File struct {
	Name   string   `json:"name"`
	Before Header   `json:"before"`
	After  Header   `json:"after"`
	Rest   []uint32 `json:"rest"` // CRC-32 of the data outside of the blocks; see Rest
}

// Changed reports whether the merge changed the file.
func (f *File) Changed() bool { return f.Before != f.After }

// Side is a file beside the weights that the merge changed. Its headers are of the whole file.
type Side struct {
	Name   string `json:"name"`
	Before Header `json:"before"`
	After  Header `json:"after"`
}

// MaxSideBytes bounds a file beside the weights, which is read whole.
const MaxSideBytes = 64 << 20

// Range is a range of bytes of a file.
type Range struct{ Off, N int64 }

// restBytes is the most that one CRC-32 of unchanged data covers.
const restBytes = 64 << 20

// Rest returns the ranges whose CRC-32 a record holds: the data between the changed ranges, in
// pieces of up to 64 MiB. The data of the file begin at off and end at size. changed ascends by
// offset.
func Rest(off, size int64, changed []Range) []Range {
	var rest []Range
	add := func(end int64) {
		for ; off < end; off += restBytes {
			rest = append(rest, Range{off, min(restBytes, end-off)})
		}
	}
	for _, c := range changed {
		add(c.Off)
		off = c.Off + c.N
	}
	add(size)
	return rest
}

// Sum returns the CRC-32 of a range of a file. It reads through buf.
func (g Range) Sum(ctx context.Context, r io.ReaderAt, buf []byte) (uint32, error) {
	var sum uint32
	for off := g.Off; off < g.Off+g.N; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		p := buf[:min(int64(len(buf)), g.Off+g.N-off)]
		if _, err := io.ReadFull(io.NewSectionReader(r, off, int64(len(p))), p); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, crc32.IEEETable, p)
	}
	return sum, nil
}

// Header identifies the header of a file: its length, including the eight bytes of the length
// field, and its SHA-256.
type Header struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// HeaderOf returns the identity of header bytes.
func HeaderOf(raw []byte) Header {
	sum := sha256.Sum256(raw)
	return Header{Bytes: int64(len(raw)), SHA256: hex.EncodeToString(sum[:])}
}

// The ways to predict a value before the merge from the value after it.
const (
	Subtract = "subtract" // RN(w′ − Σ), with Σ the sum of the terms
	Same     = "same"     // w′ itself
)

// Tensor is a tensor that the merge changed.
type Tensor struct {
	Name    string   `json:"name"`
	File    int      `json:"file"` // index into Files
	DType   string   `json:"dtype"`
	Shape   []uint64 `json:"shape"` // before the merge, which may have added rows
	Block   int64    `json:"block"` // elements per block; the last block may have fewer
	Predict string   `json:"predict"`
	Terms   []Term   `json:"terms"` // the terms that were added, for Subtract
}

// Term is one update S·B·A of a tensor.
type Term struct {
	Adapter int     `json:"adapter"` // index into Adapters
	Module  string  `json:"module"`  // in the adapter's naming
	Scale   float64 `json:"scale"`   // S = ω·s

	// Transposed says that the checkpoint stores the weight as n×m, so Σ is the transpose of S·B·A.
	Transposed bool `json:"transposed"`
}

// Records reports whether a record can hold a tensor of dtype d: its elements must be whole bytes.
func Records(d dtype.Type) bool { return d.Size() > 0 && d.Bits() == 8*d.Size() && d.Size() <= 8 }

// width returns the size of an element in bytes.
func (t *Tensor) width() int {
	d, _ := dtype.Parse(t.DType)
	return d.Size()
}

// Elements returns the number of elements.
func (t *Tensor) Elements() int64 {
	n, _ := dtype.NElements(t.Shape)
	return int64(n)
}

// Blocks returns the number of blocks.
func (t *Tensor) Blocks() int64 {
	n := t.Elements()
	if n == 0 {
		return 0
	}
	return (n-1)/t.Block + 1
}

// Elements returns the number of elements of all tensors.
func (d *Description) Elements() (n int64) {
	for i := range d.Tensors {
		n += d.Tensors[i].Elements()
	}
	return n
}

// check checks the description against the rules U4 to U8 and U10.
func (d *Description) check() error {
	for i := range d.Adapters {
		if !isDigest(d.Adapters[i].Content) {
			return broken(4, "adapter %q has the content id %q, want 64 lowercase hex digits", d.Adapters[i].Name, d.Adapters[i].Content)
		}
	}
	if len(d.Adapters) == 0 {
		return broken(4, "no adapters")
	}
	names := make(map[string]bool)
	for i := range d.Files {
		f := &d.Files[i]
		if names[f.Name] || !isDigest(f.Before.SHA256) || !isDigest(f.After.SHA256) || !isHeaderLength(f.Before.Bytes) || !isHeaderLength(f.After.Bytes) {
			return broken(5, "file %q is listed twice or lacks a valid header", f.Name)
		}
		names[f.Name] = true
	}
	if err := d.checkSide(); err != nil {
		return err
	}
	clear(names)
	for i := range d.Tensors {
		t := &d.Tensors[i]
		if names[t.Name] {
			return broken(6, "tensor %q is listed twice", t.Name)
		}
		names[t.Name] = true
		if err := d.checkTensor(t); err != nil {
			return err
		}
	}
	return nil
}

// checkSide checks the files beside the weights against the rules U3 and U17.
func (d *Description) checkSide() error {
	if d.Version == 1 && d.Side != nil {
		return broken(3, "member \"side\" is not of version 1")
	}
	names := make(map[string]bool)
	for i := range d.Side {
		s := &d.Side[i]
		isFile := func(h Header) bool { return isDigest(h.SHA256) && h.Bytes >= 0 && h.Bytes <= MaxSideBytes }
		if names[s.Name] || !isFile(s.Before) || !isFile(s.After) {
			return broken(17, "the file %q beside the weights is listed twice, or has no valid length or digest", s.Name)
		}
		names[s.Name] = true
	}
	return nil
}

func (d *Description) checkTensor(t *Tensor) error {
	typ, known := dtype.Parse(t.DType)
	n, fits := dtype.NElements(t.Shape)
	nBytes, fits2 := typ.NBytes(n)
	switch {
	case t.File < 0 || t.File >= len(d.Files):
		return broken(6, "tensor %q names file %d, want less than %d", t.Name, t.File, len(d.Files))
	case !known || !Records(typ):
		return broken(7, "tensor %q has dtype %q, for which there are no residuals", t.Name, t.DType)
	case !fits || !fits2 || nBytes > math.MaxInt64/2:
		return broken(7, "tensor %q has the impossible shape %d", t.Name, t.Shape)
	case t.Block < 1 || t.Block > math.MaxInt64/16:
		return broken(8, "tensor %q has blocks of %d elements", t.Name, t.Block)
	case t.Block < int64(n) && t.Block*int64(typ.Size()) < minBlockBytes:
		return broken(8, "tensor %q has blocks of %d bytes, want %d or the whole tensor", t.Name, t.Block*int64(typ.Size()), minBlockBytes)
	case t.Predict != Subtract && t.Predict != Same:
		return broken(10, "tensor %q has the unknown prediction %q", t.Name, t.Predict)
	case (t.Predict == Subtract) != (len(t.Terms) > 0):
		return broken(10, "tensor %q has prediction %q and %d terms", t.Name, t.Predict, len(t.Terms))
	}
	for i := range t.Terms {
		if a := t.Terms[i].Adapter; a < 0 || a >= len(d.Adapters) {
			return broken(10, "tensor %q has a term of adapter %d, want less than %d", t.Name, a, len(d.Adapters))
		}
	}
	return nil
}

// isHeaderLength reports whether n can be the length of a safetensors header, including the eight
// bytes of the length field.
func isHeaderLength(n int64) bool { return n >= 8 && n <= 8+safetensors.MaxHeaderBytes }

func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && hex.EncodeToString(b) == s // lowercase
}
