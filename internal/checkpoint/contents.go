package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/safetensors"
)

// namesIn returns the names of the tensors. An error can name the tensors that it is about.
func namesIn(c contents, err error) (names []string) {
	var named interface{ Names() []string }
	if errors.As(err, &named) {
		return named.Names()
	}
	for i := 0; err == nil && i < c.Len(); i++ {
		name, _, _ := c.Tensor(i)
		names = append(names, name)
	}
	return names
}

// showing returns the file as safetensors.torch.save_file writes its tensors, to the byte: sorted
// by dtype, the widest first, then by name, with the metadata that transformers asks for. So an
// output does not depend on the order in which a trainer filled its state dict, and every tensor is
// aligned.
func (f *File) showing(c contents) (*File, error) {
	shown := make([]Shown, c.Len())
	for i := range shown {
		name, d, shape := c.Tensor(i)
		if name == safetensors.MetadataName {
			return nil, fault.New(fault.Unsupported, "the file has a tensor called %q, which safetensors cannot hold", name)
		}
		n, ok := dtype.NElements(shape)
		nBytes, fits := d.NBytes(n)
		if !ok || !fits {
			return nil, fault.New(fault.Corrupt, "tensor %q of %v and shape %d is larger than any file", name, d, shape)
		}
		shown[i] = Shown{Name: f.prefix + name, DType: d, Shape: shape, Pieces: []Piece{{values{c, i}, 0, nBytes}}}
	}
	slices.SortFunc(shown, func(a, b Shown) int { return cmp.Or(cmp.Compare(b.DType, a.DType), cmp.Compare(a.Name, b.Name)) })
	f.header = safetensorsHeading{&safetensors.Header{Metadata: map[string]string{"format": "pt"}}}
	v, err := f.view(shown)
	if err != nil {
		return nil, err
	}
	v.notes, v.isConverted = c.Notes(), true
	return v, nil
}

// values reads one tensor.
type values struct {
	contents
	i int
}

func (v values) ReadAt(_ context.Context, p []byte, off int64) error {
	return v.contents.ReadAt(p, v.i, off)
}

// openFile opens a file, and puts prefix in front of the names of its tensors. On an error it
// closes the file.
func openFile(ctx context.Context, name, prefix string, in *fileio.Input) (*File, error) {
	f := &File{Name: name, Path: in.Path, prefix: prefix, Size: in.Size, data: stored{in.ReaderAt}, close: in.Close}
	f, err := readFile(ctx, in, f)
	if err != nil {
		in.Close()
		return nil, fault.InFile(err, in.Path)
	}
	return f, nil
}

// readFile reads the list of the tensors of a file.
func readFile(ctx context.Context, in *fileio.Input, f *File) (*File, error) {
	k, err := containerOf(in)
	if err != nil {
		return nil, err
	}
	if k.open != nil {
		return k.open(ctx, in, f)
	}
	c, err := k.read(in, in.Size)
	if names := namesIn(c, err); naming.AreOfAdapter(names) {
		e := fault.New(fault.Unsupported, "this is %s that holds an adapter, with tensors such as %q, not a checkpoint", k.title, names[0])
		e.Misplaced = true
		return nil, e.WithHint("this is an adapter")
	}
	if err != nil {
		return nil, err
	}
	return f.showing(c)
}
