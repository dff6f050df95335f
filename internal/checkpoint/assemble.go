package checkpoint

// Assembled is a tensor that Assemble makes of rows of others.
type Assembled struct {
	Name  string
	Shape []uint64
	From  []Rows // one below the other; all of one dtype and width
}

// Rows are N rows of a tensor, from row At on.
type Rows struct {
	Tensor string
	At, N  uint64
}

// Assemble returns a view of the checkpoint with tensors that are made of rows of others, without
// copying any. A tensor is no longer shown under its own name if all of its rows are in new ones.
// Closing either checkpoint closes the files of both.
func (c *Checkpoint) Assemble(tensors []Assembled) (*Checkpoint, error) {
	added := make(map[int][]Shown)
	left := make(map[string]uint64) // rows that are in no new tensor yet, by the names of tensors
	for _, a := range tensors {
		shown := Shown{Name: a.Name, Shape: a.Shape}
		for _, rows := range a.From {
			t := c.refs.tensor(rows.Tensor)
			n, each := uint64(1), t.NBytes // a tensor without dimensions is one row
			if len(t.Shape) > 0 && t.Shape[0] > 0 {
				n, each = t.Shape[0], t.NBytes/int64(t.Shape[0])
			}
			shown.DType = t.DType
			piece := Piece{t.file, t.Off + int64(rows.At)*each, int64(rows.N) * each}
			shown.Pieces = append(shown.Pieces, piece)
			if _, ok := left[t.Name]; !ok {
				left[t.Name] = n
			}
			left[t.Name] -= min(rows.N, left[t.Name])
		}
		first, _ := c.Lookup(a.From[0].Tensor)
		added[first.File] = append(added[first.File], shown)
	}
	return c.View(func(i int, f *File) []Shown {
		var shown []Shown
		for j := range f.Tensors {
			t := &f.Tensors[j]
			if rows, ok := left[t.Name]; !ok || rows > 0 {
				shown = append(shown, t.Shown())
			}
		}
		if len(added[i]) == 0 && len(shown) == len(f.Tensors) {
			return nil
		}
		return append(shown, added[i]...)
	})
}
