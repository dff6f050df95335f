package rank

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/internal/fileio"
)

// roundingLoss is the share of ‖Δ‖_F that rounding the factors of a layer may add to its error
// before that is a warning: far above what any dtype costs whose range the values fit, and well
// below an adapter that is of no use.
const roundingLoss = 0.1

// warn says what makes the adapter of little use.
func (r *extracting) warn() {
	warnf := func(format string, args ...any) {
		r.report.Warnings = append(r.report.Warnings, fmt.Sprintf(format, args...))
	}
	if r.options.Budget > 0 && len(r.report.Layers) == 0 {
		warnf("the budget of %s buys no singular value of any layer, the cheapest costs %s: the adapter has no layers",
			fileio.FormatBytes(r.options.Budget), fileio.FormatBytes(r.cheapest))
	}
	if size := r.tuned.Bytes(); r.report.Bytes >= size {
		warnf("the adapter takes %s and the tuned checkpoint %s: its ranks are too high to be of use", fileio.FormatBytes(r.report.Bytes), fileio.FormatBytes(size))
	}
	r.report.warnLeft(r.energy)
	if r.renamed != "" {
		warnf("the tensor names of the two checkpoints differ; those of one are read %s", r.renamed)
	}
	n, worst := 0, 0.0
	for i := range r.report.Layers {
		e := &r.report.Layers[i].energies
		if lost := math.Sqrt(max(0, e.rounded-e.left) / e.all); lost > roundingLoss {
			n, worst = n+1, max(worst, lost)
		}
	}
	if n > 0 {
		warnf("rounding the factors of %d layers to %v costs up to %.2g of |Δ|: their values lie below its range; BF16 and F32 have a larger one", n, r.options.DType, worst)
	}
}
