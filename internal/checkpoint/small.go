package checkpoint

import (
	"context"
	"strings"

	"github.com/loratool/loratool/internal/parallel"
)

// small reads the tensors that package quant needs to recognise weights.
type small struct {
	c    *Checkpoint
	read map[string][]byte
}

// smallEnding is the end of the names of tensors that are read beforehand: the shapes of weights of
// compressed-tensors, of which a model with many experts has 70,000.
const smallEnding = ".weight_shape"

// readers is the number of tensors that are read at a time. A disk answers many reads in the time
// of one.
const readers = 32

// smallBytes bounds the tensors that are read beforehand.
const smallBytes = 64

// readSmall reads many small tensors at once.
func readSmall(ctx context.Context, c *Checkpoint) (*small, error) {
	s := &small{c, make(map[string][]byte)}
	var tensors []*Tensor
	for _, f := range c.Files {
		for i := range f.Tensors {
			t := &f.Tensors[i]
			if t.NBytes <= smallBytes && strings.HasSuffix(t.Name, smallEnding) {
				tensors = append(tensors, t)
			}
		}
	}
	texts := make([][]byte, len(tensors))
	err := parallel.For(ctx, readers, len(tensors), func(_, i int) error {
		texts[i] = make([]byte, tensors[i].NBytes)
		return tensors[i].ReadAt(ctx, texts[i], 0)
	})
	for i, t := range tensors {
		s.read[t.Name] = texts[i]
	}
	return s, err
}

// tensor returns the bytes of a tensor.
func (s *small) tensor(ctx context.Context, name string) ([]byte, error) {
	if text, ok := s.read[name]; ok {
		return text, nil
	}
	t := s.c.refs.tensor(name)
	text := make([]byte, t.NBytes)
	return text, t.ReadAt(ctx, text, 0)
}
