package rank

import (
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// roundingLoss is the share of ‖Δ‖_F that rounding may add to a layer's error without a warning. It
// is far above the cost of any dtype whose range holds the values, and far below the error of a
// useless adapter.
const roundingLoss = 0.1

// warnOfHeaders lists what a user should know before the run. renamed says how the names of the
// tuned tensors were changed to pair them, "" if they were not.
func (e *Extraction) warnOfHeaders(renamed string) {
	if len(e.base.History()) > 0 && len(e.tuned.History()) == 0 {
		e.warnings = append(e.warnings, "the base is the output of a merge and the tuned checkpoint "+
			"is not; if you swapped them, the adapter is the negative of the one that you want")
	}
	if renamed != "" {
		e.warnings = append(e.warnings, "the tensor names of the two checkpoints differ; one "+
			"checkpoint's are read "+renamed)
	}
}

// warnOfSchemes says that Δ holds more than training changed, where codes of one checkpoint meet
// other values of the other.
func warnOfSchemes(e *Extraction) {
	n := 0
	for i := range e.pairs {
		p := &e.pairs[i]
		if base, tuned := p.base.ref.Tensor.Scheme, p.tuned.ref.Tensor.Scheme; base != tuned {
			n++
		}
	}
	if n > 0 {
		e.warnings = append(e.warnings, fmt.Sprintf("%s %s quantised in one of the checkpoints and not, or otherwise, in the other: "+
			"Δ has the error of the quantisation as well, which is of no low rank", fault.Count(n, "tensor"), fault.Choose(n, "is", "are")))
	}
}

// warn lists the reasons why the adapter may be useless.
func (r *extracting) warn() {
	warnf := func(format string, args ...any) {
		r.report.Warnings = append(r.report.Warnings, fmt.Sprintf(format, args...))
	}
	if r.options.Budget > 0 && len(r.report.Layers) == 0 {
		warnf("the adapter has no layers: the budget of %s buys no singular value; the cheapest costs %s",
			fileio.FormatBytes(r.options.Budget), fileio.FormatBytes(r.cheapest))
	}
	if size := r.tuned.Bytes(); r.report.Bytes >= size {
		warnf("the adapter takes %s and the tuned checkpoint %s: its ranks are too high to be useful", fileio.FormatBytes(r.report.Bytes), fileio.FormatBytes(size))
	}
	r.report.warnLeft(r.energy)
	changed := slices.Clone(r.tensors) // by their names in the base
	for _, b := range r.report.Beside {
		changed = append(changed, b.Tensor)
	}
	for i := range changed {
		if r.peft != nil {
			changed[i] = r.peft.disk[changed[i]]
		}
	}
	if name := r.baseEnds.uncertainIn(changed); name != "" {
		warnf("%q has changed, and the output head may be tied to it and change as well: %s",
			name, r.baseEnds.Why)
	}
	n, worst := 0, 0.0
	for i := range r.report.Layers {
		e := &r.report.Layers[i].energies
		if lost := math.Sqrt(max(0, e.rounded-e.left) / e.all); lost > roundingLoss {
			n, worst = n+1, max(worst, lost)
		}
	}
	if n > 0 {
		warnf("rounding the factors of %s to %v costs up to %.2g of |Δ|: the values lie below its range; BF16 and F32 have a wider range", fault.Count(n, "layer"), r.options.DType, worst)
	}
}

// uncertainIn returns the input embedding if it is among the changed tensors and it is uncertain
// whether the head is tied to it, else "". merge warns of the same embedding when it applies the
// adapter.
func (e *ends) uncertainIn(changed []string) string {
	if e.Tied && e.Why != "" && e.Embedding != "" && slices.Contains(changed, e.embedding()) {
		return e.embedding()
	}
	return ""
}
