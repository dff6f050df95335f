package kernel

import (
	"context"
	"slices"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestPackingEndsWithItsContext: the factors of one layer can have gigabytes, and whoever
// interrupts a merge does not wait until they are packed.
func TestPackingEndsWithItsContext(t *testing.T) {
	const rows, cols, rank = 4 * askRows, 3, 5
	for name, scale := range map[string]float32{"R is packed": 1, "R is packed and kept": 0x1p100} {
		t.Run(name, func(t *testing.T) {
			l, r := make([]float32, rows*rank), make([]float32, rank*cols)
			l[0], r[0] = 1, scale
			const least = 1 + rows/askRows + rank
			testkit.EndsAnywhere(t, least, 1, func(ctx context.Context) error {
				terms := []Term[float32]{{S: 1, Rank: rank, L: l, R: r}}
				_, err := Prepare(ctx, Available()[0], dtype.BF16, rows, cols, terms)
				return err
			})
		})
	}
}

// TestMergingEndsWithItsContext: one block can take seconds, where every element needs an exact sum
// of some thousand products, or where a first block prepares the update in float64.
func TestMergingEndsWithItsContext(t *testing.T) {
	const rows, cols, rank = 24, 16, 5
	l, r := make([]float64, rows*rank), make([]float64, rank*cols)
	for i := range l {
		l[i] = 1
	}
	for i := range r {
		r[i] = 0x1p-400 // its products with 2⁻⁵⁵⁰ leave the range of double-double
	}
	deep := []Term[float32]{{S: 0x1p-100, Rank: rank, L: convert[float32](l),
		R: slices.Repeat([]float32{1}, len(r))}}
	far := []Term[float64]{{S: 0x1p-550, Rank: rank, L: l, R: r}}
	magnitude := slices.Repeat([]float64{0x1p-800}, max(rows, cols))
	rescaled := func(ctx context.Context, ofColumns bool) error {
		w := make([]byte, rows*cols*8)
		var norms *ColumnNorms
		n := rows
		if ofColumns {
			n = cols
			u, err := PrepareRescaled(ctx, dtype.F64, rows, cols, Sum{Terms: far}, magnitude[:n], nil)
			if err != nil {
				return err
			}
			sums := NewColumnSquares(cols)
			if err := u.AddSquares(ctx, sums, w, 0, new(RescaleScratch)); err != nil {
				return err
			}
			read := func(j, _ int, yield func(row, j int, w float64)) error {
				for i := range rows {
					yield(i, j, 0)
				}
				return nil
			}
			norms = NewColumnNorms([]*ColumnSquares{sums}, read)
		}
		u, err := PrepareRescaled(ctx, dtype.F64, rows, cols, Sum{Terms: far}, magnitude[:n], norms)
		if err != nil {
			return err
		}
		return u.Merge(ctx, w, 0, new(Stats), new(RescaleScratch))
	}
	for name, c := range map[string]struct {
		least int
		run   func(ctx context.Context) error
	}{
		"in float64, near the bottom": {rows/bottomRows + rank, func(ctx context.Context) error {
			u := packTerms(Available()[0], dtype.BF16, rows, cols, deep)
			return u.Merge(ctx, make([]byte, rows*cols*2), 0, new(Stats), new(Scratch[float32]))
		}},
		"its negative": {rows/bottomRows + rank, func(ctx context.Context) error {
			u, err := packTerms(Available()[0], dtype.BF16, rows, cols, deep).Negative(ctx)
			if err != nil {
				return err
			}
			return u.Merge(ctx, make([]byte, rows*cols*2), 0, new(Stats), new(Scratch[float32]))
		}},
		"exactly": {rows * cols, func(ctx context.Context) error {
			u := packTerms(Available()[0], dtype.F64, rows, cols, far)
			return u.Merge(ctx, make([]byte, rows*cols*8), 0, new(Stats), new(Scratch[float64]))
		}},
		"rescaled rows":    {2 * rows * cols, func(ctx context.Context) error { return rescaled(ctx, false) }},
		"rescaled columns": {2 * rows * cols, func(ctx context.Context) error { return rescaled(ctx, true) }},
	} {
		t.Run(name, func(t *testing.T) { testkit.EndsAnywhere(t, c.least, 1, c.run) })
	}
}
