package checkpoint

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
)

// Stored returns the checkpoint as its files have it, with codes and scales in place of the weights
// that they stand for. Closing either checkpoint closes the files of both.
func Stored(c *Checkpoint) *Checkpoint {
	if c.quantisation == nil {
		return c
	}
	return c.quantisation.stored
}

// Decoding returns the checkpoint as its files have it, but for weights of QuantisedOf to which as,
// in the same order, gives a dtype: these are plain values of it, each rounded once, and their
// codes and scales are gone. Invalid leaves a weight. All tensors of a file with such weights are
// aligned. Closing either checkpoint closes the files of both.
func Decoding(c *Checkpoint, as []dtype.Type) (*Checkpoint, error) {
	was := c.quantisation
	q := &quantisation{
		stored: was.stored, weights: was.weights, refused: was.refused, parts: was.parts, broken: was.broken,
		hasUnits: was.hasUnits, lost: make([]lost, len(as)),
	}
	for i, d := range as {
		if d != dtype.Invalid {
			q.lost[i].name = was.weights[i].Name
		}
	}
	v, err := q.stored.View(func(i int, f *File) []Shown {
		shown := q.shown(i, func(weight int) dtype.Type { return as[weight] })
		slices.SortStableFunc(shown, func(a, b Shown) int { return f.header.compare(a.DType, b.DType) })
		return shown
	})
	if err != nil {
		return nil, err
	}
	v.quantisation = &quantisation{stored: q.stored, refused: q.refused, broken: q.broken, lost: q.lost}
	return v, nil
}

// Lost counts the values that reads of a decoded weight have met. One that is read twice counts
// twice.
type Lost struct {
	Name      string
	NonFinite int64 // NaN or infinite in the base, by scales
	Overflown int64 // finite in the base, and infinite in the dtype of the view
}

// LostOf lists the weights of a view of Decoding that have such values, sorted by name.
func LostOf(c *Checkpoint) (all []Lost) {
	if c.quantisation == nil {
		return nil
	}
	for i := range c.quantisation.lost {
		l := &c.quantisation.lost[i]
		if x := (Lost{l.name, l.nonFinite.Load(), l.overflown.Load()}); x.NonFinite+x.Overflown > 0 {
			all = append(all, x)
		}
	}
	return all
}

// WithoutSide returns the checkpoint without one of the files beside the weights.
func WithoutSide(c *Checkpoint, name string) *Checkpoint {
	v := *c
	v.Side = slices.DeleteFunc(slices.Clone(c.Side), func(s string) bool { return s == name })
	return &v
}

// Quantised describes a weight that the files store as codes and scales.
type Quantised struct {
	Name   string
	Scheme string
	DType  dtype.Type // of the weight before it was quantised, as far as the checkpoint tells
	Parts  []string   // the stored tensors that hold it, the codes first

	IsRounded bool // float64 cannot hold the values of the codes, which are rounded to it
}

// IsQuantised reports whether there are quantised weights that can be read.
func IsQuantised(c *Checkpoint) bool { return c.quantisation != nil && len(c.quantisation.weights) > 0 }

// QuantisedOf lists the quantised weights, sorted by name.
func QuantisedOf(c *Checkpoint) []Quantised {
	if c.quantisation == nil {
		return nil
	}
	all := make([]Quantised, len(c.quantisation.weights))
	for i, w := range c.quantisation.weights {
		all[i] = Quantised{Name: w.Name, Scheme: w.Scheme, DType: w.DType, Parts: append(slices.Clip(w.Parts), w.Beside...), IsRounded: w.IsRounded}
	}
	return all
}

// WeightOf returns the name of the quantised weight that a stored tensor holds the codes of, and
// the name itself of any other tensor.
func WeightOf(c *Checkpoint, stored string) string {
	q := c.quantisation
	if q == nil {
		return stored
	}
	i, ok := q.stored.refs.table.Find(stored, q.stored.refs.name)
	if !ok || len(q.parts) == 0 || q.parts[i] == 0 || q.weights[q.parts[i]-1].Parts[0] != stored {
		return stored
	}
	return q.weights[q.parts[i]-1].Name
}

// CheckCodes reads what belongs to the codes of quantised weights, given by their numbers in
// QuantisedOf, where the files can hold what no weight has, such as an index beyond its end.
// Reading the values fails with the same errors.
func CheckCodes(ctx context.Context, c *Checkpoint, wanted iter.Seq[int]) error {
	q := c.quantisation
	for i := range wanted {
		codec, ok := q.weights[i].Codec.(quant.Checker)
		if !ok {
			continue
		}
		v := q.decoder(i, dtype.F64)
		if err := codec.Check(ctx, &v); err != nil {
			return fault.InFile(err, c.Path)
		}
	}
	return nil
}

// weight returns the number of a quantised weight; ok is false if there is none of the name.
func (q *quantisation) weight(name string) (i int, ok bool) {
	return slices.BinarySearchFunc(q.weights, name, func(w quant.Weight, name string) int { return strings.Compare(w.Name, name) })
}

// Unreadable is a quantised weight that cannot be read, with the reason.
type Unreadable struct {
	Name   string
	Scheme string
	Parts  []string // the stored tensors that hold it
	Err    error
}

// UnreadableOf lists the quantised weights that cannot be read, sorted by name.
func UnreadableOf(c *Checkpoint) []Unreadable {
	if c.quantisation == nil {
		return nil
	}
	all := make([]Unreadable, len(c.quantisation.refused))
	for i, r := range c.quantisation.refused {
		all[i] = Unreadable{r.Name, r.Scheme, r.Parts, fault.InFile(r.Err, c.Path)}
	}
	return all
}

// OnlyReadable returns the checkpoint without the list of UnreadableOf. Refusal still tells of
// these weights, and their stored tensors stay.
func OnlyReadable(c *Checkpoint) *Checkpoint {
	if c.quantisation == nil {
		return c
	}
	v, q := *c, c.quantisation
	v.quantisation = &quantisation{stored: q.stored, hasUnits: q.hasUnits, weights: q.weights, parts: q.parts, broken: q.broken, lost: q.lost}
	return &v
}

// Refusal returns why a weight cannot be read, or nil. The name is the weight's, or that of a
// stored tensor that belongs to it.
func Refusal(c *Checkpoint, name string) error {
	if c.quantisation == nil || c.quantisation.broken[name] == nil {
		return nil
	}
	return fault.InFile(c.quantisation.broken[name].Err, c.Path)
}
