package checkpoint

import (
	"context"
	"slices"

	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
)

// Cut returns a view of the checkpoint whose files have the tensors of other headers, by the number
// of the file: each tensor begins with the same data, and may have fewer rows. Tensors that the
// headers lack are gone. text is the config.json to go by, nil for that of the checkpoint. Closing
// either checkpoint closes the files of both. Errors name no path.
func Cut(c *Checkpoint, headers map[int]*Header, text []byte) (*Checkpoint, error) {
	shown := make(map[int][]Shown)
	for i, h := range headers {
		if c.Files[i].Fits(h) {
			continue
		}
		var err error
		if shown[i], err = c.Files[i].cut(h); err != nil {
			return nil, err
		}
	}
	if len(shown) == 0 && text == nil {
		return c, nil
	}
	v, err := c.View(func(i int, _ *File) []Shown { return shown[i] })
	if err != nil {
		return nil, err
	}
	for i := range shown {
		if f := v.Files[i]; !f.Fits(headers[i]) {
			return nil, fault.New(fault.Corrupt, "the header does not place the tensors of %s one after the other", f.Path)
		}
	}
	return v, reconfigure(v, text)
}

// cut lists the tensors of another header with their data in this file.
func (f *File) cut(h *Header) ([]Shown, error) {
	have := make(map[string]*Tensor, len(f.Tensors))
	for i := range f.Tensors {
		have[f.Tensors[i].Name] = &f.Tensors[i]
	}
	shown := make([]Shown, len(h.tensors))
	for i := range h.tensors {
		t := &h.tensors[i]
		s := have[f.prefix+t.Name]
		if s == nil || s.DType != t.DType || s.Scheme != t.Scheme || !IsCut(t.Shape, s.Shape) {
			return nil, fault.New(fault.Corrupt, "%s has no tensor %q with the values of %v of shape %d", f.Path, t.Name, t.DType, t.Shape)
		}
		shown[i] = s.Shown()
		shown[i].Shape = t.Shape
		shown[i].Pieces[0].N = t.NBytes
	}
	return shown, nil
}

// IsCut reports whether a tensor of shape is the beginning of one of shape of: the same, or with
// fewer rows.
func IsCut(shape, of []uint64) bool {
	return slices.Equal(shape, of) ||
		len(shape) > 0 && len(shape) == len(of) && shape[0] <= of[0] && slices.Equal(shape[1:], of[1:])
}

// reconfigure reads the model's configuration again, from the text of a config.json and the weight
// files.
func reconfigure(c *Checkpoint, text []byte) (err error) {
	own, err := configIn(c)
	switch {
	case err != nil:
		return err
	case own.Found:
		c.Config = own
	case text != nil:
		c.Config, err = config.Parse(text)
	}
	return err
}

// Unpadded returns the path of a file that has other bytes between its tensors, or behind them,
// than zeros up to where an aligned tensor would begin; "" if there is none. Only a GGUF file can
// have them, and a view never shows them.
func Unpadded(ctx context.Context, c *Checkpoint) (path string, err error) {
	for _, f := range c.Files {
		if !inGGUF(f) {
			continue
		}
		if isPadded, err := f.isPadded(ctx); err != nil || !isPadded {
			return f.Path, err
		}
	}
	return "", nil
}

func (f *File) isPadded(ctx context.Context) (bool, error) {
	at := f.DataOff
	areZeros := func(end int64) (bool, error) {
		p := make([]byte, end-at) // less than an alignment
		err := f.ReadAt(ctx, p, at)
		return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }), err
	}
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if ok, err := areZeros(t.Off); !ok || err != nil {
			return false, err
		}
		at = t.Off + t.NBytes
	}
	end := at
	if align := f.header.(*ggufHeading).Alignment; len(f.Tensors) > 0 {
		end = (at + align - 1) &^ (align - 1)
	}
	if f.Size != end {
		return false, nil
	}
	return areZeros(end)
}
