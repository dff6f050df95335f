package checkpoint

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"sync"
	"weak"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/gguf"
)

// A view is a checkpoint that shows other tensors than the checkpoint behind it: renamed, reshaped,
// or decoded on reading. Its files read as if they had been written that way, beginning with a new
// header. Nothing is copied.

// Shown is a tensor in a view.
type Shown struct {
	Name   string
	DType  dtype.Type
	Shape  []uint64
	Pieces []Piece // the bytes of the tensor, one piece after the other
	Scheme string  // see Tensor
}

// Piece is the N bytes of a source from offset Off.
type Piece struct {
	Source Reader
	Off, N int64
}

// Shown returns the tensor unchanged, for a view.
func (t *Tensor) Shown() Shown {
	s := t.shape()
	s.Pieces = []Piece{t.piece()}
	return s
}

// shape returns the tensor without its bytes, and piece the bytes.
func (t *Tensor) shape() Shown {
	return Shown{Name: t.Name, DType: t.DType, Shape: t.Shape, Scheme: t.Scheme}
}

func (t *Tensor) piece() Piece { return Piece{t.file, t.Off, t.NBytes} }

// View returns a checkpoint that shows other tensors. show returns the tensors of file i in the
// order of their data, or nil to keep the file unchanged. Two tensors of the same name are an
// error, and so are pieces whose lengths do not add up to the tensor's. Closing either checkpoint
// closes the files of both.
func (c *Checkpoint) View(show func(i int, f *File) []Shown) (*Checkpoint, error) {
	v := *c
	v.Files = slices.Clone(c.Files)
	files := c.Files
	if IsSplit(c) {
		files, show = joint(c.Files, show)
	}
	for i, f := range files {
		shown := show(i, c.Files[i])
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

// view returns the file with other tensors.
func (f *File) view(shown []Shown) (*File, error) {
	prefix := f.commonPrefix(shown)
	tensors := make([]Tensor, len(shown))
	for i, s := range shown {
		tensors[i] = Tensor{Name: strings.TrimPrefix(s.Name, prefix), DType: s.DType, Shape: s.Shape, Scheme: s.Scheme}
		for _, p := range s.Pieces {
			tensors[i].NBytes += p.N
		}
	}
	raw, h, end, err := f.header.compose(tensors)
	if err != nil {
		return nil, fmt.Errorf("the tensors do not fit into the header of a file: %w", err)
	}
	var data stitched
	text := &composed{kept: weak.Make(&raw)}
	data.add(Piece{text, 0, int64(len(raw))})
	for i, s := range shown {
		data.padTo(tensors[i].Off)
		for _, p := range s.Pieces {
			data.add(p)
		}
	}
	data.padTo(end)
	v := &File{Name: f.Name, Path: f.Path, prefix: prefix, Size: end, data: &data, behind: f, close: f.close, isConverted: f.isConverted}
	text.file = v
	return newFile(h, int64(len(raw)), tensors, v), nil
}

// joint prepares a view of the parts of a model: keys of any part say something of all tensors. It
// returns the files with headings that know the new whole, and the tensors that each shows. A part
// whose tensors stay and whose keys change is shown, too.
func joint(files []*File, show func(i int, f *File) []Shown) ([]*File, func(i int, f *File) []Shown) {
	shown, whole := make([][]Shown, len(files)), make([][]Shown, len(files))
	for i, f := range files {
		shown[i] = show(i, f)
		if whole[i] = shown[i]; whole[i] == nil {
			whole[i] = shownAll(f)
		}
	}
	now := summaryOfShown(whole)
	knowing := make([]*File, len(files))
	for i, f := range files {
		h := *f.header.(*ggufHeading)
		if h.now = &now; h.was != now {
			shown[i] = whole[i]
		}
		g := *f
		g.header = &h
		knowing[i] = &g
	}
	return knowing, func(i int, _ *File) []Shown { return shown[i] }
}

func shownAll(f *File) []Shown {
	all := make([]Shown, len(f.Tensors))
	for i := range f.Tensors {
		all[i] = f.Tensors[i].Shown()
	}
	return all
}

// summaryOfShown summarises the tensors of files. A tensor that a GGUF file cannot hold has no
// type: composing the header refuses it.
func summaryOfShown(files [][]Shown) summary {
	var list []gguf.Tensor
	for _, shown := range files {
		for i := range shown {
			s := &shown[i]
			t, _ := ggufTensor(&Tensor{Name: s.Name, DType: s.DType, Shape: s.Shape, Scheme: s.Scheme})
			list = append(list, t)
		}
	}
	return summaryOf(list)
}

// composed reads the header of a view. Most views are never read as files, and their headers would
// take as much memory as all else about their tensors. So it composes the text when it is read, and
// keeps it only as long as the collector lets it.
type composed struct {
	file *File
	lock sync.Mutex
	kept weak.Pointer[[]byte]
}

func (c *composed) ReadAt(_ context.Context, p []byte, off int64) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	text := c.kept.Value()
	if text == nil {
		var err error
		if text, err = c.compose(); err != nil {
			return err
		}
		c.kept = weak.Make(text)
	}
	if off > int64(len(*text)) || copy(p, (*text)[off:]) < len(p) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func (c *composed) compose() (*[]byte, error) {
	f := c.file
	tensors := slices.Clone(f.Tensors)
	for i := range tensors {
		tensors[i].Name = strings.TrimPrefix(tensors[i].Name, f.prefix)
	}
	raw, _, _, err := f.behind.header.compose(tensors)
	return &raw, err
}

// stitched is a file assembled from pieces.
type stitched struct {
	pieces []Piece
	ends   []int64 // of the pieces
}

// add appends a piece. A piece that continues the previous one in the same file extends it.
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

// padTo adds zeros up to an offset.
func (s *stitched) padTo(off int64) { s.add(Piece{zeros{}, 0, off - s.size()}) }

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

// source returns the source of the piece at an offset.
func (s *stitched) source(off int64) Reader {
	i := sort.Search(len(s.ends), func(i int) bool { return s.ends[i] > off })
	if i == len(s.pieces) {
		return nil
	}
	return s.pieces[i].Source
}

// commonPrefix returns the prefix of the file's names, "" if a shown tensor has another name.
func (f *File) commonPrefix(shown []Shown) string {
	if slices.ContainsFunc(shown, func(s Shown) bool { return !strings.HasPrefix(s.Name, f.prefix) }) {
		return ""
	}
	return f.prefix
}
