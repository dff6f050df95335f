package checkpoint

import (
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/loratool/loratool/internal/safetensors"
)

// Change is a tensor that a reshaped checkpoint has otherwise: a new one, or one with more rows or of another shape.
type Change struct {
	Name string
	From string // the tensor that its values are those of; its own name, or another's in the same checkpoint
	Rows uint64 // how many it has; those that From lacks are zero

	// Zeros, in place of From, is the dtype, shape and size of a tensor of zeros.
	Zeros *Tensor
}

// Reshape returns a checkpoint that has some tensors otherwise, without copying any: its files read as if they had been
// written so. A new tensor comes last in the file of the one that it is a copy of, and one of zeros in the last file.
// Closing either checkpoint closes the files of both.
func (c *Checkpoint) Reshape(changes []Change) (*Checkpoint, error) {
	byName := make(map[string]Change)
	added := make(map[int][]Change)
	for _, change := range changes {
		byName[change.Name] = change
		if _, ok := c.refs[change.Name]; ok {
			continue
		}
		file := len(c.Files) - 1
		if change.Zeros == nil {
			file = c.refs[change.From].File
		}
		added[file] = append(added[file], change)
	}
	r := *c
	r.Files = slices.Clone(c.Files)
	for i, f := range c.Files {
		isChanged := func(t Tensor) bool { _, ok := byName[t.Name]; return ok }
		if len(added[i]) == 0 && !slices.ContainsFunc(f.Tensors, isChanged) {
			continue
		}
		var l layout
		for _, t := range f.Tensors {
			change, ok := byName[t.Name]
			if !ok {
				change = Change{Name: t.Name, From: t.Name}
			}
			l.add(c, change)
		}
		for _, change := range added[i] {
			l.add(c, change)
		}
		var err error
		if r.Files[i], err = f.restitched(l.tensors, l.pieces); err != nil {
			return nil, err
		}
	}
	return &r, r.indexTensors()
}

// Rename returns a checkpoint that has some tensors under other names, without copying any; names maps the present name to
// the new one. Closing either checkpoint closes the files of both. It is an error if two tensors have the same name then.
func (c *Checkpoint) Rename(names map[string]string) (*Checkpoint, error) {
	r := *c
	r.Files = slices.Clone(c.Files)
	for i, f := range c.Files {
		tensors := slices.Clone(f.Tensors)
		isRenamed := false
		for j := range tensors {
			if name, ok := names[tensors[j].Name]; ok {
				tensors[j].Name, isRenamed = name, true
			}
		}
		if !isRenamed {
			continue
		}
		var err error
		if r.Files[i], err = f.restitched(tensors, []piece{{f.Data, f.DataOff, f.Size - f.DataOff}}); err != nil {
			return nil, err
		}
	}
	return &r, r.indexTensors()
}

// layout is the tensors of a file, in their order, and the pieces that their values are read from.
type layout struct {
	tensors []Tensor
	pieces  []piece
}

func (l *layout) add(c *Checkpoint, change Change) {
	if z := change.Zeros; z != nil {
		l.tensors = append(l.tensors, Tensor{Name: change.Name, DType: z.DType, Shape: slices.Clone(z.Shape), NBytes: z.NBytes})
		l.pieces = append(l.pieces, piece{zeros{}, 0, z.NBytes})
		return
	}
	from := c.refs[change.From]
	t := *from.Tensor
	t.Name, t.Shape = change.Name, slices.Clone(t.Shape)
	l.pieces = append(l.pieces, piece{c.Files[from.File].Data, t.Off, t.NBytes})
	if change.Rows > 0 {
		t.NBytes = t.NBytes / int64(t.Shape[0]) * int64(change.Rows)
		t.Shape[0] = change.Rows
	}
	if more := t.NBytes - from.Tensor.NBytes; more > 0 {
		l.pieces = append(l.pieces, piece{zeros{}, 0, more})
	}
	l.tensors = append(l.tensors, t)
}

// restitched is the file with other tensors, whose values are read from pieces.
func (f *File) restitched(tensors []Tensor, pieces []piece) (*File, error) {
	stored := make([]safetensors.Tensor, len(tensors))
	for i, t := range tensors {
		stored[i] = safetensors.Tensor(t)
	}
	raw := safetensors.Compose(stored, f.header.Metadata)
	h, err := safetensors.ReadAlone(raw)
	if err != nil {
		return nil, fmt.Errorf("internal error: a header of our own: %w", err)
	}
	data := newStitched(append([]piece{{byteReader(raw), 0, int64(len(raw))}}, pieces...))
	return newFile(h, File{Name: f.Name, Path: f.Path, Size: data.size(), Data: data, close: f.close}), nil
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
