package kernel

import (
	"context"
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
