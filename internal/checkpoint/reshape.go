package checkpoint

import (
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/loratool/loratool/internal/safetensors"
)

// Change is a tensor that a reshaped checkpoint has otherwise: a new one, or one with more rows.
type Change struct {
	Name string
	From string // the tensor that its values are those of; its own name, or another's in the same checkpoint
	Rows uint64 // how many it has; those that From lacks are zero
}

// Reshape returns a checkpoint that has some tensors otherwise, without copying any: its files read as if they had been written so.
// A new tensor comes last in the file of the one that it is a copy of. Closing either checkpoint closes the files of both.
func (c *Checkpoint) Reshape(changes []Change) (*Checkpoint, error) {
	byName := make(map[string]Change)
	added := make(map[int][]Change)
	for _, change := range changes {
		byName[change.Name] = change
		from := c.refs[change.From]
		if _, ok := c.refs[change.Name]; !ok {
			added[from.File] = append(added[from.File], change)
		}
	}
	r := *c
	r.Files = slices.Clone(c.Files)
	for i, f := range c.Files {
		touched := len(added[i]) > 0 || slices.ContainsFunc(f.Header.Tensors, func(t safetensors.Tensor) bool { _, ok := byName[t.Name]; return ok })
		if !touched {
			continue
		}
		var pieces []piece
		var tensors []safetensors.Tensor
		add := func(name, from string, rows uint64) {
			ref := c.refs[from]
			t := *ref.Tensor
			t.Name, t.Shape = name, slices.Clone(t.Shape)
			own := t.NBytes
			if rows > 0 {
				t.NBytes = own / int64(t.Shape[0]) * int64(rows)
				t.Shape[0] = rows
			}
			pieces = append(pieces, piece{c.Files[ref.File].Data, ref.Tensor.Off, own})
			if more := t.NBytes - own; more > 0 {
				pieces = append(pieces, piece{zeros{}, 0, more})
			}
			tensors = append(tensors, t)
		}
		for _, t := range f.Header.Tensors {
			if change, ok := byName[t.Name]; ok {
				add(t.Name, change.From, change.Rows)
			} else {
				add(t.Name, t.Name, 0)
			}
		}
		for _, change := range added[i] {
			add(change.Name, change.From, change.Rows)
		}
		raw := safetensors.Compose(tensors, f.Header.Metadata)
		h, err := safetensors.ReadAlone(raw)
		if err != nil {
			return nil, fmt.Errorf("internal error: a header of our own: %w", err)
		}
		data := newStitched(append([]piece{{byteReader(raw), 0, int64(len(raw))}}, pieces...))
		r.Files[i] = &File{Name: f.Name, Path: f.Path, Size: data.size(), Header: h, Data: data, close: f.close}
	}
	return &r, r.indexTensors()
}

// FileOf is the name of the file that holds a tensor.
func (c *Checkpoint) FileOf(name string) string { return c.Files[c.refs[name].File].Name }

// IndexName is the name of the index of a sharded checkpoint, or "".
func (c *Checkpoint) IndexName() string {
	for _, name := range weightFiles {
		if slices.Contains(c.Side, name+".index.json") {
			return name + ".index.json"
		}
	}
	return ""
}

// piece is n bytes of a source, from off on.
type piece struct {
	source io.ReaderAt
	off, n int64
}

// stitched is a file that is put together of pieces.
type stitched struct {
	pieces []piece
	ends   []int64 // of the pieces
}

func newStitched(pieces []piece) *stitched {
	s := &stitched{pieces: pieces}
	at := int64(0)
	for _, p := range pieces {
		at += p.n
		s.ends = append(s.ends, at)
	}
	return s
}

func (s *stitched) size() int64 { return s.ends[len(s.ends)-1] }

// ReadAt reads from one piece after the other.
func (s *stitched) ReadAt(p []byte, off int64) (n int, err error) {
	i := sort.Search(len(s.ends), func(i int) bool { return s.ends[i] > off })
	for ; n < len(p) && i < len(s.pieces); i++ {
		piece := &s.pieces[i]
		start := off + int64(n) - (s.ends[i] - piece.n)
		k := min(int64(len(p)-n), piece.n-start)
		if _, err := io.ReadFull(io.NewSectionReader(piece.source, piece.off+start, k), p[n:n+int(k)]); err != nil {
			return n, err
		}
		n += int(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// byteReader reads from memory.
type byteReader []byte

func (b byteReader) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, b[min(off, int64(len(b))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
