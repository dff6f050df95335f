package convert

import (
	"context"
	"io"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/gguf"
)

func (ggufDialect) Create(path string, o CreateOptions) (format.Sink, error) {
	return &ggufSink{path, o}, nil
}

func (ggufDialect) CreateTo(out output.Output, o CreateOptions) (format.Sink, error) {
	return &ggufOutput{out, o}, nil
}

// ggufSink writes a file to a path.
type ggufSink struct {
	path    string
	options CreateOptions
}

func (s *ggufSink) Check(ctx context.Context, src format.Source) error {
	size := int64(0)
	if src != nil {
		w, err := composeGGUF(ctx, src, &s.options)
		if err != nil {
			return err
		}
		if size, err = gguf.Size(w.keys, w.listed()); err != nil {
			return err
		}
	}
	return s.checkPlace(ctx, size)
}

func (s *ggufSink) checkPlace(ctx context.Context, size int64) error {
	if kindOf(s.path) != ggufFile {
		return fault.New(fault.Unsupported, "%s is no name for a GGUF file", s.path).
			WithHint("name an output ending in .gguf")
	}
	place := fileio.Place{
		Path: s.path, Replace: s.options.Replace, Inputs: s.options.Inputs, Bytes: size,
		Known: under(ctx, isGGUFAdapter), Kind: "a GGUF file with an adapter",
	}
	return place.Check()
}

// isGGUFAdapter reports whether path is a GGUF file with an adapter.
func isGGUFAdapter(ctx context.Context, path string) bool {
	in, err := lookAt(ctx, path)
	if err != nil {
		return false
	}
	defer in.close()
	return in.readTable() == nil && in.table.gguf != nil
}

func (s *ggufSink) Store(ctx context.Context, src format.Source) error {
	w, err := composeGGUF(ctx, src, &s.options)
	if err != nil {
		return err
	}
	size, err := gguf.Size(w.keys, w.listed())
	if err != nil {
		return err
	}
	if err := s.checkPlace(ctx, size); err != nil {
		return err
	}
	disk, err := output.NewDisk(s.path, output.DiskOptions{Replace: s.options.Replace})
	if err != nil {
		return err
	}
	return storeTo(ctx, disk, src, func() error { return w.store(disk, &s.options) })
}

// PeakBytes counts the manifest and two tensors: the one being written, and its source.
func (s *ggufSink) PeakBytes(src format.Source) int64 {
	largest := int64(0)
	for i := range src.Manifest().Tensors {
		largest = max(largest, src.Manifest().Tensors[i].NBytes())
	}
	return format.WriterOptions{Workers: 1}.PeakBytes(src.Manifest()) + 6*largest
}

// Remarks says what the file rounds.
func (s *ggufSink) Remarks(ctx context.Context, src format.Source) ([]string, error) {
	w, err := composeGGUF(ctx, src, &s.options)
	if err != nil {
		return nil, err
	}
	return w.remarks, nil
}

// ggufOutput writes the file to an output.
type ggufOutput struct {
	out     output.Output
	options CreateOptions
}

func (s *ggufOutput) Store(ctx context.Context, src format.Source) error {
	w, err := composeGGUF(ctx, src, &s.options)
	if err != nil {
		return err
	}
	return w.store(s.out, &s.options)
}

func (w *ggufWriter) store(out output.Output, o *CreateOptions) error {
	return writeFile(out, output.Info{Mode: o.modeOf(peftWeights)}, func(to io.Writer) error {
		return gguf.Write(w.ctx, to, w.keys, w.listed(), w.data)
	})
}

// listed returns the tensors of the file: A and B of each layer.
func (w *ggufWriter) listed() []gguf.Tensor {
	var all []gguf.Tensor
	for _, l := range w.layers {
		for _, role := range []format.Role{roleA, roleB} {
			x := l.factors[role]
			shape := l.shapes[role]
			t := gguf.Tensor{Name: l.name + ggufA, Type: ggufTypeOf(x.dtype)}
			if role == roleB {
				t.Name = l.name + ggufB
			}
			for i := range shape {
				t.Dims = append(t.Dims, shape[len(shape)-1-i])
			}
			all = append(all, t)
		}
	}
	return all
}

func ggufTypeOf(d dtype.Type) gguf.Type {
	for t, of := range ggufTypes {
		if of == d {
			return t
		}
	}
	return gguf.F32
}

// data writes the content of a tensor.
func (w *ggufWriter) data(to io.Writer, i int) error {
	l, role := w.layers[i/2], roleA
	if i%2 == 1 {
		role = roleB
	}
	x := l.factors[role]
	p, err := x.content(w.ctx, w.src)
	if err != nil {
		return err
	}
	if l.name == ggufEmbedding && role == roleA {
		p = transposed(p, int(x.shape[0]), int(x.shape[1]), x.dtype.Size())
	}
	_, err = to.Write(p)
	return err
}

// transposed returns a matrix with its rows as columns.
func transposed(p []byte, nRows, nCols, size int) []byte {
	out := make([]byte, len(p))
	for i := range nRows {
		for k := range nCols {
			copy(out[(k*nRows+i)*size:][:size], p[(i*nCols+k)*size:])
		}
	}
	return out
}
