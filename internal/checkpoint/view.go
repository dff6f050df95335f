package checkpoint

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/safetensors"
)

// A view is a checkpoint that shows other tensors than another one has: renamed or reshaped ones,
// or ones that are decoded when they are read. Its files read as if they had been written so, a
// composed header first, and nothing is copied.

// Shown is a tensor as a view has it.
type Shown struct {
	Name   string
	DType  dtype.Type
	Shape  []uint64
	Pieces []Piece // their bytes, one after the other, are those of the tensor
}

// Piece is N bytes of a source from Off on.
type Piece struct {
	Source Reader
	Off, N int64
}

// Shown is the tensor as it is.
func (t *Tensor) Shown() Shown {
	return Shown{t.Name, t.DType, t.Shape, []Piece{{t.file, t.Off, t.NBytes}}}
}

// View returns a checkpoint that shows other tensors. show lists those of file i in the order of
// their data, or returns nil for a file that stays as it is. It is an error if two tensors have one
// name, or pieces that are not as long as their tensor. Closing either checkpoint closes the files
// of both.
func (c *Checkpoint) View(show func(i int, f *File) []Shown) (*Checkpoint, error) {
	v := *c
	v.Files = slices.Clone(c.Files)
	for i, f := range c.Files {
		shown := show(i, f)
		if shown == nil {
			continue
		}
		var err error
		if v.Files[i], err = f.view(shown); err != nil {
			return nil, err
		}
	}
	return &v, v.indexTensors()
}

// view is the file with other tensors.
func (f *File) view(shown []Shown) (*File, error) {
	tensors := make([]safetensors.Tensor, len(shown))
	var data stitched
	for i, s := range shown {
		t := &tensors[i]
		*t = safetensors.Tensor{Name: s.Name, DType: s.DType, Shape: s.Shape}
		for _, p := range s.Pieces {
			t.NBytes += p.N
		}
	}
	raw := safetensors.Compose(tensors, f.header.Metadata)
	h, err := safetensors.ReadAlone(raw)
	if err != nil {
		return nil, fmt.Errorf("internal error: a header of our own: %w", err)
	}
	data.add(Piece{memory(raw), 0, int64(len(raw))})
	for _, s := range shown {
		for _, p := range s.Pieces {
			data.add(p)
		}
	}
	return newFile(h, &File{Name: f.Name, Path: f.Path, Size: data.size(), data: &data, behind: f, close: f.close}), nil
}

// stitched is a file that is put together of pieces.
type stitched struct {
	pieces []Piece
	ends   []int64 // of the pieces
}

// add puts a piece at the end. One that goes on in a file where the last one ended becomes a part
// of that one.
func (s *stitched) add(p Piece) {
	if p.N == 0 {
		return
	}
	end := s.size() + p.N
	if n := len(s.pieces); n > 0 {
		last := &s.pieces[n-1]
		if f, ok := p.Source.(*File); ok && last.Source == Reader(f) && last.Off+last.N == p.Off {
			last.N += p.N
			s.ends[n-1] = end
			return
		}
	}
	s.pieces, s.ends = append(s.pieces, p), append(s.ends, end)
}

func (s *stitched) size() int64 {
	if len(s.ends) == 0 {
		return 0
	}
	return s.ends[len(s.ends)-1]
}

// ReadAt reads from one piece after the other.
func (s *stitched) ReadAt(ctx context.Context, p []byte, off int64) error {
	for i := sort.Search(len(s.ends), func(i int) bool { return s.ends[i] > off }); len(p) > 0; i++ {
		if i == len(s.pieces) {
			return io.ErrUnexpectedEOF
		}
		piece := &s.pieces[i]
		start := off - (s.ends[i] - piece.N)
		n := min(int64(len(p)), piece.N-start)
		if err := piece.Source.ReadAt(ctx, p[:n], piece.Off+start); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// memory reads from memory.
type memory []byte

func (m memory) ReadAt(_ context.Context, p []byte, off int64) error {
	if off > int64(len(m)) || copy(p, m[off:]) < len(p) {
		return io.ErrUnexpectedEOF
	}
	return nil
}
