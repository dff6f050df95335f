package checkpoint

import (
	"context"
	"slices"
)

// Change describes a tensor that Reshape adds, or gives more rows or another shape.
type Change struct {
	Name string
	From string // the tensor that the values come from: its own name, or that of another tensor of the checkpoint
	Rows uint64 // the number of rows; rows that From lacks are zero

	// Zeros replaces From for a tensor of zeros: it gives the dtype, shape and size.
	Zeros *Tensor
}

// Reshape returns a view of the checkpoint with some tensors changed or added, without copying any.
// A new tensor comes last in the file of the tensor it copies, a tensor of zeros last in the last
// file. Closing either checkpoint closes the files of both.
func (c *Checkpoint) Reshape(changes []Change) (*Checkpoint, error) {
	byName := make(map[string]Change)
	added := make(map[int][]Shown)
	for _, change := range changes {
		byName[change.Name] = change
		if c.refs.tensor(change.Name) != nil {
			continue
		}
		file := len(c.Files) - 1
		if change.Zeros == nil {
			from, _ := c.Lookup(change.From)
			file = from.File
		}
		added[file] = append(added[file], change.shown(c))
	}
	return c.View(func(i int, f *File) []Shown {
		isChanged := func(t Tensor) bool { _, ok := byName[t.Name]; return ok }
		if len(added[i]) == 0 && !slices.ContainsFunc(f.Tensors, isChanged) {
			return nil
		}
		var shown []Shown
		for j := range f.Tensors {
			t := &f.Tensors[j]
			if change, ok := byName[t.Name]; ok {
				shown = append(shown, change.shown(c))
			} else {
				shown = append(shown, t.Shown())
			}
		}
		return append(shown, added[i]...)
	})
}

// shown returns the changed tensor for a view.
func (change Change) shown(c *Checkpoint) Shown {
	if z := change.Zeros; z != nil {
		return Shown{Name: change.Name, DType: z.DType, Shape: z.Shape, Pieces: []Piece{{zeros{}, 0, z.NBytes}}}
	}
	t := c.refs.tensor(change.From)
	s := t.Shown()
	s.Name, s.Shape = change.Name, slices.Clone(t.Shape)
	if change.Rows > 0 {
		n := t.NBytes / int64(t.Shape[0]) * int64(change.Rows)
		s.Shape[0] = change.Rows
		s.Pieces[0].N = min(n, t.NBytes)
		s.Pieces = append(s.Pieces, Piece{zeros{}, 0, max(0, n-t.NBytes)})
	}
	return s
}

// zeros is an endless source of zeros.
type zeros struct{}

func (zeros) ReadAt(_ context.Context, p []byte, _ int64) error {
	clear(p)
	return nil
}

// Rename returns a view of the checkpoint with some tensors renamed, without copying any. names
// maps old names to new ones. Two tensors with the same new name are an error. Closing either
// checkpoint closes the files of both.
func (c *Checkpoint) Rename(names map[string]string) (*Checkpoint, error) {
	return c.View(func(_ int, f *File) []Shown {
		shown := make([]Shown, len(f.Tensors))
		isRenamed := false
		for i := range f.Tensors {
			shown[i] = f.Tensors[i].Shown()
			if name, ok := names[shown[i].Name]; ok {
				shown[i].Name, isRenamed = name, true
			}
		}
		if !isRenamed {
			return nil
		}
		return shown
	})
}
