package resolve

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// checkConvolution checks that the factors of a convolution fit its weight. A, r×in×k…, and B, out×r×1…, are themselves
// convolutions, one after the other: their product, B out×r times A r×(in·k…), has the elements of the weight in its order.
func (r *resolver) checkConvolution(l *format.Layer, w, a, b []uint64) error {
	if len(a) == len(b) && len(a) == len(w) && len(w) >= 3 {
		out, in, kernel := w[0], w[1], w[2:]
		spatial := slices.ContainsFunc(b[2:], func(n uint64) bool { return n != 1 })
		if rank := uint64(l.Rank); a[0] == rank && b[0] == out && slices.Equal(a[2:], kernel) && !spatial {
			switch {
			case b[1] == rank && a[1] == in:
				return nil
			case b[1] > 0 && in > 0 && b[1] < rank && a[1]%in == 0:
				return fault.New(fault.Unsupported, "%q is a convolution in %d groups: A reads all %d input channels, and the weight has places for %d of them per output",
					l.Module, a[1]/in, a[1], in).WithHint("serve the adapter unmerged")
			}
		}
	}
	return fault.New(fault.Mismatch, "the convolution %q: lora_A has shape %d and lora_B %d, the base's weight has shape %d", l.Module, a, b, w).
		WithHint("%s", r.wrongBase())
}
