package convert

import (
	"context"
	"io"
	"path/filepath"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	safefile "github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

func (mlxDialect) Create(path string, o CreateOptions) (format.Sink, error) {
	return &mlxSink{path, o}, nil
}

func (mlxDialect) CreateTo(out output.Output, o CreateOptions) (format.Sink, error) {
	return &mlxOutput{out, o}, nil
}

// mlxWeights is mlx-lm's name for the weights of an adapter.
const mlxWeights = "adapters.safetensors"

// mlxSink writes a directory to a path.
type mlxSink struct {
	path    string
	options CreateOptions
}

func (s *mlxSink) Check(ctx context.Context, src format.Source) error {
	w := new(mlxWriter)
	if src != nil {
		var err error
		if w, err = composeMLX(ctx, src, &s.options); err != nil {
			return err
		}
	}
	return s.checkPlace(ctx, w)
}

func (s *mlxSink) checkPlace(ctx context.Context, w *mlxWriter) error {
	if kindOf(s.path) != noWeights {
		return fault.New(fault.Unsupported, "%s is no name for a directory of mlx-lm", s.path).
			WithHint("name a directory")
	}
	place := fileio.Place{
		Path: s.path, IsDir: true, Replace: s.options.Replace, Inputs: s.options.Inputs,
		Files: []string{mlxWeights, format.PEFTConfig}, Known: under(ctx, isMLXDir), Kind: "an adapter of MLX",
	}
	for _, t := range w.listed() {
		place.Bytes += t.NBytes()
	}
	if w.card != nil {
		place.Files = append(place.Files, format.ModelCard)
	}
	return place.Check()
}

// isMLXDir reports whether the directory at path holds an adapter of MLX.
func isMLXDir(ctx context.Context, path string) bool {
	return isPEFTFile(ctx, filepath.Join(path, mlxWeights))
}

func (s *mlxSink) Store(ctx context.Context, src format.Source) error {
	w, err := composeMLX(ctx, src, &s.options)
	if err != nil {
		return err
	}
	if err := s.checkPlace(ctx, w); err != nil {
		return err
	}
	disk, err := output.NewDisk(s.path, output.DiskOptions{
		IsDir: true, Mode: s.options.dirMode(), Replace: s.options.Replace,
	})
	if err != nil {
		return err
	}
	return storeTo(ctx, disk, src, func() error { return w.store(disk, &s.options) })
}

// PeakBytes counts the manifest and a few copies of the largest tensor.
func (s *mlxSink) PeakBytes(src format.Source) int64 {
	largest := int64(0)
	for i := range src.Manifest().Tensors {
		largest = max(largest, src.Manifest().Tensors[i].NBytes())
	}
	return format.WriterOptions{Workers: 1}.PeakBytes(src.Manifest()) + 8*largest
}

// Remarks says what the files round, and what nothing told the writer.
func (s *mlxSink) Remarks(ctx context.Context, src format.Source) ([]string, error) {
	w, err := composeMLX(ctx, src, &s.options)
	if err != nil {
		return nil, err
	}
	return w.remarks, nil
}

// mlxOutput writes the files to an output.
type mlxOutput struct {
	out     output.Output
	options CreateOptions
}

func (s *mlxOutput) Store(ctx context.Context, src format.Source) error {
	w, err := composeMLX(ctx, src, &s.options)
	if err != nil {
		return err
	}
	return w.store(s.out, &s.options)
}

// store writes the files. On disk those beside the weights appear first.
func (w *mlxWriter) store(out output.Output, o *CreateOptions) error {
	info := output.Info{Name: mlxWeights, Mode: o.modeOf(peftWeights)}
	err := writeFile(out, info, func(to io.Writer) error {
		return safefile.Write(w.ctx, to, w.listed(), map[string]string{"format": "mlx"}, w.read)
	})
	if err != nil {
		return err
	}
	config, err := w.config()
	if err != nil {
		return err
	}
	side := []sideFile{{format.PEFTConfig, config}}
	if w.card != nil {
		side = append(side, sideFile{format.ModelCard, w.card})
	}
	for _, f := range side {
		if err := writeFile(out, output.Info{Name: f.name, Mode: o.modeOf(f.name)}, f.write); err != nil {
			return err
		}
	}
	return nil
}

// mlxPart is a tensor of the file: a factor or the magnitudes of a layer.
type mlxPart struct {
	layer *mlxLayer
	role  format.Role
}

// parts returns the tensors of the file in the order of listed.
func (w *mlxWriter) parts() (all []mlxPart) {
	for _, l := range w.layers {
		for _, role := range []format.Role{roleA, roleB, roleMagnitude} {
			if l.factors[role] != nil {
				all = append(all, mlxPart{l, role})
			}
		}
	}
	return all
}

// listed returns the tensors of the file, with the rank of all layers.
func (w *mlxWriter) listed() (all []format.Tensor) {
	for _, p := range w.parts() {
		l, r := p.layer, uint64(w.rank)
		t := format.Tensor{DType: l.factors[p.role].dtype}
		switch {
		case p.role == roleMagnitude:
			t.Name, t.Shape = l.name+".m", []uint64{l.m}
		case p.role == roleA && l.nExperts > 0:
			t.Name, t.Shape = l.name+".lora_a", []uint64{l.nExperts, r, l.n}
		case p.role == roleA:
			t.Name, t.Shape = l.name+".lora_a", []uint64{l.n, r}
		case l.nExperts > 0:
			t.Name, t.Shape = l.name+".lora_b", []uint64{l.nExperts, l.m, r}
		default:
			t.Name, t.Shape = l.name+".lora_b", []uint64{r, l.m}
		}
		all = append(all, t)
	}
	return all
}

// read fills p with bytes of a tensor of the file. It keeps the last tensor in memory.
func (w *mlxWriter) read(p []byte, i int, off int64) error {
	if w.content == nil || w.last != i {
		content, err := w.contentOf(w.parts()[i])
		if err != nil {
			return err
		}
		w.content, w.last = content, i
	}
	copy(p, w.content[off:])
	return nil
}

// contentOf returns the bytes of a tensor: transposed if it is a factor of no experts, and padded
// to the rank.
func (w *mlxWriter) contentOf(part mlxPart) ([]byte, error) {
	l := part.layer
	x := l.factors[part.role]
	p, err := x.content(w.ctx, w.src)
	if err != nil || part.role == roleMagnitude {
		return p, err
	}
	size, r, n, m := x.dtype.Size(), l.rank, int(l.n), int(l.m)
	isA := part.role == roleA
	switch e := int(l.nExperts); {
	case e > 0 && isA:
		return widened(p, e, r*n*size, w.rank*n*size), nil
	case e > 0:
		return widened(p, e*m, r*size, w.rank*size), nil
	case isA:
		return widened(transposed(p, r, n, size), n, r*size, w.rank*size), nil
	}
	return widened(transposed(p, m, r, size), 1, r*m*size, w.rank*m*size), nil
}

// widened returns rows of from bytes with zeros behind each, up to to bytes.
func widened(p []byte, nRows, from, to int) []byte {
	if from == to {
		return p
	}
	out := make([]byte, nRows*to)
	for i := range nRows {
		copy(out[i*to:], p[i*from:(i+1)*from])
	}
	return out
}
