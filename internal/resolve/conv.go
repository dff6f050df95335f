package resolve

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// checkConvolution checks that the factors of a convolution fit its weight. A, r×in×k…, and B, out×r×1…, are themselves
// convolutions, one after the other: their product, B out×r times A r×(in·k…), has the elements of the weight in its order.
func (r *resolver) checkConvolution(l *format.Layer, w, a, b []uint64) error {
	if len(a) == len(b) && len(a) == len(w) && len(w) >= 3 {
		rank, spatial := uint64(l.Rank), slices.ContainsFunc(b[2:], func(n uint64) bool { return n != 1 })
		if a[0] == rank && b[0] == w[0] && b[1] == rank && a[1] == w[1] && slices.Equal(a[2:], w[2:]) && !spatial {
			return nil
		}
	}
	if d, ok := naming.DiagnoseConvolution(l.Module, w, a, b); ok && d.Hint != "" {
		return fault.New(fault.Unsupported, "%s", d.Why).WithHint("%s", d.Hint)
	} else if ok {
		return fault.New(fault.Mismatch, "%s", d.Why).WithHint("%s", r.wrongBase())
	}
	return fault.New(fault.Mismatch, "the convolution %q: lora_A has shape %d and lora_B %d, the base's weight has shape %d", l.Module, a, b, w).
		WithHint("%s", r.wrongBase())
}
