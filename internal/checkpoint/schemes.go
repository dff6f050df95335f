package checkpoint

import (
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// Stored returns the checkpoint as its files have it, with codes and scales in place of the weights
// that they stand for. Closing either checkpoint closes the files of both.
func Stored(c *Checkpoint) *Checkpoint {
	if c.quantisation == nil {
		return c
	}
	return c.quantisation.stored
}

// Quantised describes a weight that the files store as codes and scales.
type Quantised struct {
	Name   string
	Scheme string
	DType  dtype.Type // of the weight before it was quantised, as far as the checkpoint tells
	Parts  []string   // the stored tensors that hold it, the codes first
	NBytes int64      // of these
}

// QuantisedOf lists the quantised weights, sorted by name.
func QuantisedOf(c *Checkpoint) []Quantised {
	if c.quantisation == nil {
		return nil
	}
	all := make([]Quantised, len(c.quantisation.weights))
	for i, w := range c.quantisation.weights {
		all[i] = Quantised{Name: w.Name, Scheme: w.Scheme, DType: w.DType, Parts: slices.Concat(w.Parts, w.Beside)}
		for _, part := range all[i].Parts {
			all[i].NBytes += c.quantisation.stored.refs[part].Tensor.NBytes
		}
	}
	return all
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

// Refusal returns why a weight cannot be read, or nil. The name is the weight's, or that of a
// stored tensor that belongs to it.
func Refusal(c *Checkpoint, name string) error {
	if c.quantisation == nil || c.quantisation.broken[name] == nil {
		return nil
	}
	return fault.InFile(c.quantisation.broken[name].Err, c.Path)
}
