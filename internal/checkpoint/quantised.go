package checkpoint

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/quant"
)

// quantised shows the weights that the files store as codes and scales as their values: in F64,
// which holds them exactly. The tensors with scales and codes are no longer shown. Weights in a
// scheme that package quant does not read stay as the files have them, and Refusal knows them.
func quantised(ctx context.Context, c *Checkpoint) (*Checkpoint, error) {
	if inGGUF(c.Files[0]) || !mayBeQuantised(c) {
		return c, nil
	}
	tensors := make([]quant.Tensor, c.refs.n())
	for i := range tensors {
		t := c.refs.at(i).Tensor
		tensors[i] = quant.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape}
	}
	says := quant.ReadConfig(c.Config.Quantization, c.Config.DType)
	says.Shape = c.Config.WeightShape
	small, err := readSmall(ctx, c)
	if err != nil {
		return c, err
	}
	found, err := quant.Recognise(tensors, says, func(name string) ([]byte, error) { return small.tensor(ctx, name) })
	if err != nil || len(found.Weights)+len(found.Refused) == 0 {
		return c, err
	}
	q := &quantisation{stored: c, weights: found.Weights, refused: found.Refused}
	return q.view()
}

// mayBeQuantised reports whether any tensor shows that a checkpoint may be quantised.
func mayBeQuantised(c *Checkpoint) bool {
	for _, f := range c.Files {
		for i := range f.Tensors {
			if quant.IsMark(f.Tensors[i].Name, f.Tensors[i].DType) {
				return true
			}
		}
	}
	return false
}

// quantisation says how a checkpoint stores its quantised weights.
type quantisation struct {
	stored *Checkpoint // as the files have it

	// hasUnits says that the scales of decoded weights stay in the files, as ones.
	hasUnits bool

	weights []quant.Weight
	refused []quant.Refusal
	parts   []int32                   // 1 + the number of the weight of each tensor of stored, 0 for none
	broken  map[string]*quant.Refusal // by the name of the weight, and of each stored tensor
	kept    keeper
	lost    []lost // of the weights that a view shows in another dtype than F64, by their numbers
}

// view shows the stored checkpoint with the values of every weight, in F64.
func (q *quantisation) view() (*Checkpoint, error) {
	q.index()
	v := *q.stored
	v.quantisation = q
	if len(q.weights) == 0 {
		return &v, nil
	}
	return v.View(func(i int, _ *File) []Shown { return q.shown(i, func(int) dtype.Type { return dtype.F64 }) })
}

func (q *quantisation) index() {
	r := &q.stored.refs
	q.parts, q.broken = make([]int32, r.n()), make(map[string]*quant.Refusal)
	for i := range q.weights {
		w := &q.weights[i]
		for _, names := range [][]string{w.Parts, w.Beside} {
			for _, name := range names {
				part, _ := r.table.Find(name, r.name)
				q.parts[part] = int32(i) + 1
			}
		}
	}
	for i := range q.refused {
		r := &q.refused[i]
		q.broken[r.Name] = r
		for _, name := range r.Parts {
			q.broken[name] = r
		}
	}
}

// shown returns the tensors of a stored file with values in place of the codes of some weights. as
// returns the dtype of a weight's values by its number, Invalid to show its stored tensors. It
// returns nil for a file without such a weight.
func (q *quantisation) shown(file int, as func(weight int) dtype.Type) []Shown {
	first, f := q.stored.refs.first[file], q.stored.Files[file]
	dtypeOf := func(i int) (weight int, d dtype.Type) {
		if weight = int(q.parts[first+i]) - 1; weight >= 0 {
			d = as(weight)
		}
		return weight, d
	}
	n := 0
	for i := range f.Tensors {
		if _, d := dtypeOf(i); d != dtype.Invalid {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	shown, decoders := make([]Shown, 0, len(f.Tensors)), make([]decoder, 0, n) // room for all at once
	pieces := make([]Piece, 0, len(f.Tensors))
	for i := range f.Tensors {
		t := &f.Tensors[i]
		weight, d := dtypeOf(i)
		s := t.shape()
		switch {
		case d == dtype.Invalid:
			pieces = append(pieces, t.piece())
		case t.Name == q.weights[weight].Parts[0]:
			decoders = append(decoders, q.decoder(weight, d))
			w := &q.weights[weight]
			n, _ := dtype.NElements(w.Shape)
			nBytes, _ := d.NBytes(n) // at most 64 times the bytes of the codes
			s = Shown{Name: w.Name, DType: d, Shape: w.Shape, Scheme: w.Scheme}
			pieces = append(pieces, Piece{&decoders[len(decoders)-1], 0, nBytes})
		case q.hasUnits:
			pieces = append(pieces, Piece{ones{}, 0, t.NBytes})
		default:
			continue
		}
		k := len(pieces)
		s.Pieces = pieces[k-1 : k : k]
		shown = append(shown, s)
	}
	return shown
}

// decoder returns a reader of the values of a weight.
func (q *quantisation) decoder(weight int, d dtype.Type) decoder {
	v := decoder{weight: &q.weights[weight], stored: &q.stored.refs, d: d, kept: &q.kept}
	if q.lost != nil {
		v.lost = &q.lost[weight]
	}
	return v
}
