package resolve

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// explainMissing says why the base lacks tensors that the adapter wants to change.
func (r *resolver) explainMissing(wanted, missing []string) error {
	if err := (absent{r}).explain(); err != nil {
		return err
	}
	for _, name := range missing {
		module := naming.Module(name)
		renamed := r.mapping.Renamed(module)
		if e := r.ends(); e.Tied && e.Why == "" && e.Head == "" &&
			(naming.IsHead(module) || r.mapping.Renamed(name) == r.adapterHead(e.Embedding)) {
			return tiedError(name)
		}
		if strings.HasSuffix(name, ".bias") && r.names.Has(renamed+".weight") {
			return fault.New(fault.Mismatch, "the adapter changes the bias of %q, and the base has none there", module).
				WithHint("%s", r.wrongBase())
		}
	}
	if err := explainHead(r, wanted, missing); err != nil {
		return err
	}
	if err := r.diagnose(missing); err != nil {
		return err
	}
	if len(missing) == len(wanted) {
		return fault.New(fault.Mismatch, "the base has none of the %d tensors that the adapter changes: %s; it has, for example, %q",
			len(wanted), fault.List(missing, 3), r.names.Like(missing[0])).
			WithHint("%s", r.wrongBase())
	}
	e := fault.New(fault.Mismatch, "the base lacks %d of the %d tensors that the adapter changes: %s", len(missing), len(wanted), fault.List(missing, 3))
	for _, b := range r.model.Beside {
		if slices.Contains(missing, b.Target) {
			return e.WithHint("the adapter saves modules whole that the base does not have, such as a new head; give a base that has them")
		}
	}
	return e.WithHint("%s", r.wrongBase())
}

// explainHead says that the base lacks nothing but the head of a task: one that the adapter
// updates, or one that is all that it saves, so that nothing pairs. It is nil where that is not so.
func explainHead(r *resolver, wanted, missing []string) error {
	heads := naming.HeadSegments(r.base.Config.ModelType)
	isSaved := false
	for _, name := range missing {
		segment, _, _ := strings.Cut(r.mapping.Renamed(name), ".")
		if !heads[segment] && !naming.IsHeadSegment(segment) {
			return nil
		}
		isSaved = isSaved ||
			slices.ContainsFunc(r.model.Beside, func(b format.Beside) bool { return b.Target == name })
	}
	switch {
	case len(missing) < len(wanted) && !isSaved:
		return fault.New(fault.Mismatch,
			"the adapter updates a head that the base lacks, and does not hold its values: %s",
			fault.List(missing, 3)).
			WithHint("merge into a checkpoint with the head that the training began with; " +
				"if transformers made that head at random, it is lost, and the update with it")
	case len(missing) == len(wanted) && len(r.model.Layers) == 0:
		return fault.New(fault.Mismatch, "the adapter holds a head alone, which the base lacks: %s; "+
			"nothing tells whether it belongs to this base", fault.List(missing, 3)).
			WithHint("if it does, load the base with transformers as the class that was trained, " +
				"save it, and merge into that")
	}
	return nil
}

// diagnose asks the names of the base why they lack the adapter's tensors, then its
// configuration; nil where neither tells.
func (r *resolver) diagnose(missing []string) error {
	renamed := make([]string, len(missing))
	for i, name := range missing {
		renamed[i] = r.mapping.Renamed(name)
	}
	if d, ok := r.names.Diagnose(append(renamed, missing...)); ok {
		return fault.New(fault.Unsupported, "%s", d.Why).WithHint("%s", d.Hint)
	}
	if method := r.base.Config.QuantizationMethod; method != "" {
		return fault.New(fault.Unsupported, "the base is quantised (config.json says %s), and has no tensor %q", method, missing[0]).
			WithHint(naming.Dequantise)
	}
	return nil
}
