package rank

import (
	"context"
	"io"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
)

// spool is a source under construction. Its tensors go to a file one after the other, so an adapter
// of any size takes no memory. Closing the spool removes the file.
type spool struct {
	file     output.Scratch
	manifest format.Manifest
	offsets  []int64
	size     int64
}

// newSpool creates a spool beside the adapter's path or in the scratch space of its output, so that
// factors wait on the disk that the user chose. With neither it is in a temporary file.
func newSpool(path string, out output.Output) (*spool, error) {
	var f output.Scratch
	var err error
	if path != "" {
		f, err = output.ScratchBeside(path)
	} else {
		f, err = output.NewScratch(out)
	}
	if err != nil {
		return nil, err
	}
	return &spool{file: f}, nil
}

// add appends a tensor and returns its index.
func (s *spool) add(name string, d dtype.Type, shape []uint64, data []byte) (int, error) {
	if _, err := s.file.WriteAt(data, s.size); err != nil {
		return 0, err
	}
	return s.enter(name, d, shape, int64(len(data))), nil
}

// copy appends a tensor of a checkpoint under a new name, and counts its NaN and infinite values.
func (s *spool) copy(ctx context.Context, name string, t *checkpoint.Tensor) (index, nonFinite int, err error) {
	const piece = 1 << 18
	d, n := t.DType, t.NBytes
	buf := make([]byte, min(n, piece))
	var values []float64
	if d.IsFloat() {
		values = make([]float64, len(buf)/d.Size())
	}
	for done := int64(0); done < n; done += piece {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		p := buf[:min(piece, n-done)]
		if err := t.ReadAt(ctx, p, done); err != nil {
			return 0, 0, err
		}
		if d.IsFloat() {
			v := values[:len(p)/d.Size()]
			dtype.Widen64(v, d, p)
			for _, x := range v {
				if x-x != 0 {
					nonFinite++
				}
			}
		}
		if _, err := s.file.WriteAt(p, s.size+done); err != nil {
			return 0, 0, err
		}
	}
	return s.enter(name, d, t.Shape, n), nonFinite, nil
}

func (s *spool) enter(name string, d dtype.Type, shape []uint64, n int64) int {
	s.manifest.Tensors = append(s.manifest.Tensors, format.Tensor{Name: name, DType: d, Shape: shape})
	s.offsets = append(s.offsets, s.size)
	s.size += n
	return len(s.offsets) - 1
}

func (s *spool) Manifest() *format.Manifest { return &s.manifest }

func (s *spool) ReadBlobAt(p []byte, i int, off int64) error {
	_, err := io.ReadFull(io.NewSectionReader(s.file, s.offsets[i]+off, int64(len(p))), p)
	return err
}

func (s *spool) Close() error { return s.file.Close() }
