package checkpoint

import (
	"context"
	"slices"
)

// Change is a tensor that a reshaped checkpoint has otherwise: a new one, or one with more rows or
// of another shape.
type Change struct {
	Name string
	From string // the tensor that its values are those of; its own name, or another's in the same checkpoint
	Rows uint64 // how many it has; those that From lacks are zero

	// Zeros, in place of From, is the dtype, shape and size of a tensor of zeros.
	Zeros *Tensor
}

// Reshape returns a checkpoint that has some tensors otherwise, without copying any: its files read
// as if they had been written so. A new tensor comes last in the file of the one that it is a copy
// of, and one of zeros in the last file. Closing either checkpoint closes the files of both.
func (c *Checkpoint) Reshape(changes []Change) (*Checkpoint, error) {
	byName := make(map[string]Change)
	added := make(map[int][]Shown)
	for _, change := range changes {
		byName[change.Name] = change
		if _, ok := c.refs[change.Name]; ok {
			continue
		}
		file := len(c.Files) - 1
		if change.Zeros == nil {
			file = c.refs[change.From].File
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

// shown is the tensor of a checkpoint as the change wants it.
func (change Change) shown(c *Checkpoint) Shown {
	if z := change.Zeros; z != nil {
		return Shown{change.Name, z.DType, z.Shape, []Piece{{zeros{}, 0, z.NBytes}}}
	}
	t := c.refs[change.From].Tensor
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

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) ReadAt(_ context.Context, p []byte, _ int64) error {
	clear(p)
	return nil
}

// Rename returns a checkpoint that has some tensors under other names, without copying any; names
// maps the present name to the new one. Closing either checkpoint closes the files of both. It is
// an error if two tensors have the same name then.
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
