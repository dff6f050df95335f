package checkpoint

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/quant"
)

// Codes are the stored codes of a quantised weight that can get new ones. Any number of goroutines
// may use one.
type Codes struct {
	Tensor *Tensor // the codes, as the files have them
	Scheme string
	Cols   int64 // elements of a stored row

	// IsTransposed says that the matrices of the weight are stored transposed.
	IsTransposed bool

	recoder quant.Recoder
	decoder *decoder
}

// Recoding has elements of whole rows that get new codes.
type Recoding = quant.Recoding

// Dither chooses at random among the codes beside the numbers of a Recoding.
type Dither = quant.Dither

// Dither returns the numbers that belong to a seed and a weight, or nil if the steps of its codes
// are too large for that: those of all schemes but FP8 and Q8_0.
func (k *Codes) Dither(seed int64, weight string) *Dither {
	if quant.FP8.Stores(k.Scheme) || k.Scheme == "Q8_0" {
		return quant.NewDither(seed, weight)
	}
	return nil
}

// CodesOf returns the codes of a quantised weight, or nil if they cannot get new values while
// everything beside them stays.
func CodesOf(c *Checkpoint, name string) *Codes {
	q := c.quantisation
	i, ok := q.weight(name)
	if !ok || len(q.weights[i].Shape) < 2 {
		return nil
	}
	v := q.decoder(i, dtype.F64)
	w := v.weight
	k := &Codes{Tensor: q.stored.refs.tensor(w.Parts[0]), Scheme: w.Scheme, decoder: &v}
	n := len(w.Shape)
	rows, cols := w.Shape[n-2], w.Shape[n-1]
	if k.recoder, k.IsTransposed = quant.RecoderOf(w.Codec); k.recoder == nil {
		return nil
	}
	if k.IsTransposed {
		rows, cols = cols, rows
	}
	all, _ := dtype.NElements(w.Shape[:n-2])
	k.Cols = int64(cols)
	if s := k.Tensor.Shape; len(s) < 2 || int64(all*rows)*k.recoder.RowBytes(k.Cols) != k.Tensor.NBytes {
		return nil
	}
	return k
}

// RowBytes is the number of bytes of a stored row.
func (k *Codes) RowBytes() int64 { return k.recoder.RowBytes(k.Cols) }

// Values fills dst with the values of codes: those of the stored rows from row0 on.
func (k *Codes) Values(ctx context.Context, dst []float64, codes []byte, row0 int64) error {
	err := k.recoder.Decode(ctx, dst, row0*k.Cols, &held{k.decoder, codes, row0 * k.RowBytes()})
	return fault.InFile(err, k.Tensor.Path())
}

// Recode changes r.Codes: those of the stored rows from row0 on.
func (k *Codes) Recode(ctx context.Context, r *Recoding, row0 int64) error {
	r.At = row0 * k.Cols
	return fault.InFile(k.recoder.Recode(ctx, r, &held{k.decoder, r.Codes, row0 * k.RowBytes()}), k.Tensor.Path())
}

// held reads codes from memory, and everything else from the files.
type held struct {
	*decoder
	codes []byte
	off   int64
}

// ReadPart implements quant.Parts.
func (h *held) ReadPart(ctx context.Context, p []byte, part int, off int64) error {
	if part != 0 {
		return h.decoder.ReadPart(ctx, p, part, off)
	}
	copy(p, h.codes[off-h.off:])
	return nil
}
