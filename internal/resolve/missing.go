package resolve

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// explainMissing explains why the base lacks tensors that the adapter changes.
func (r *resolver) explainMissing(wanted, missing []string) error {
	if len(r.base.Tensors) == 0 {
		return fault.New(fault.Mismatch, "the base %s has no tensors", r.base.Path).WithHint("give the file or the directory with the weights of the model")
	}
	if err := (absent{r}).explain(); err != nil {
		return err
	}
	for _, name := range missing {
		if !strings.Contains(name, ".") && r.names.Has(name) {
			return fault.New(fault.Mismatch, "the adapter changes %q; a name without a dot does not tell "+
				"that this tensor of the base is meant", name)
		}
		module := naming.Module(name)
		renamed := naming.Module(r.mapping.Renamed(name))
		if e := r.ends(); e.Tied && e.Why == "" && e.Head == "" &&
			(naming.IsHead(module) || r.mapping.Renamed(name) == r.adapterHead(e.Embedding)) {
			return tiedError(name)
		}
		if strings.HasSuffix(name, ".bias") && r.names.Has(renamed+".weight") {
			return noBias(r, module)
		}
	}
	if err := explainHead(r, wanted, missing); err != nil {
		return err
	}
	if err := r.diagnose(missing); err != nil {
		return err
	}
	if len(missing) == len(wanted) {
		have := fmt.Sprintf("has none of the %d tensors", len(wanted))
		if len(wanted) == 1 {
			have = "lacks the only tensor"
		}
		return fault.New(fault.Mismatch, "the base %s that the adapter changes: %s; it has, for example, %q",
			have, fault.List(missing, 3), r.names.Like(missing[0])).
			WithHint("%s", r.wrongBase()+swapped(r, wanted))
	}
	e := fault.New(fault.Mismatch, "the base lacks %d of the %d tensors that the adapter changes: %s", len(missing), len(wanted), fault.List(missing, 3))
	for _, b := range r.model.Beside {
		if slices.Contains(missing, b.Target) {
			return e.WithHint("the adapter saves modules whole that the base lacks, such as a new head; give a base that has them")
		}
	}
	return e.WithHint("%s", r.wrongBase())
}

// swapped offers the one prefix whose replacement would put all tensors in the base.
func swapped(r *resolver, wanted []string) string {
	from, to, ok := naming.Swap(r.names, wanted)
	if !ok {
		return ""
	}
	trim := func(prefix string) string { return strings.TrimSuffix(prefix, ".") }
	return fmt.Sprintf("; if it is this model under other names, set Options.Prefix=%s=%s", trim(from), trim(to))
}

// noBias is the error for a bias that the base lacks.
func noBias(r *resolver, module string) error {
	return fault.New(fault.Mismatch, "the adapter changes the bias of %q, but the base has none there",
		module).WithHint("%s", r.wrongBase())
}

// explainHead returns an error if the base lacks only a head of a task, and the adapter either
// updates this head or saves nothing else, so that no name pairs. Otherwise it returns nil.
func explainHead(r *resolver, wanted, missing []string) error {
	isSaved := false
	for _, name := range missing {
		segment, _, _ := strings.Cut(r.mapping.Renamed(name), ".")
		if !naming.IsHeadSegment(segment, r.base.Config.ModelType) && !naming.IsLabelSegment(segment) {
			return nil
		}
		isSaved = isSaved ||
			slices.ContainsFunc(r.model.Beside, func(b format.Beside) bool { return b.Target == name })
	}
	switch {
	case len(missing) < len(wanted) && !isSaved:
		return fault.New(fault.Mismatch,
			"the adapter updates a head that the base lacks, but does not hold its values: %s",
			fault.List(missing, 3)).
			WithHint("merge into a checkpoint with the head that the training began with; " +
				"if transformers made that head at random, it is lost, and the update with it")
	case len(missing) == len(wanted) && len(r.model.Layers) == 0:
		return fault.New(fault.Mismatch, "the adapter holds only a head, which the base lacks: %s; "+
			"nothing tells whether it belongs to this base", fault.List(missing, 3)).
			WithHint("if it does, load the base with transformers as the class that was trained, " +
				"save it, and merge into that")
	}
	return nil
}

// diagnose asks the names of the base, and then its configuration, why it lacks the adapter's
// tensors. It returns nil if neither tells.
func (r *resolver) diagnose(missing []string) error {
	renamed := make([]string, len(missing))
	for i, name := range missing {
		renamed[i] = r.mapping.Renamed(name)
	}
	if name := naming.Holder(append(renamed, missing...), slices.Collect(maps.Keys(r.base.Refused))); name != "" {
		return r.base.Refused[name]
	}
	if a := r.base.Config.Architecture; a != "" && naming.LlamaCppNamed(a) == nil && !strings.HasPrefix(missing[0], "blk.") {
		return fault.New(fault.Mismatch, "the base is a GGUF file of the architecture %q, for which this version does not know the names of llama.cpp; the adapter has those of transformers, such as %q", a, missing[0]).
			WithHint("merge into the checkpoint for transformers, and convert the merged one with llama.cpp; known are %s", naming.LlamaCppArchitectures())
	}
	if d, ok := r.names.Diagnose(append(renamed, missing...)); ok {
		return fault.New(fault.Mismatch, "%s", d.Why).WithHint("%s", d.Hint)
	}
	if method := r.base.Config.QuantizationMethod; method != "" && !r.base.IsDecodable {
		return fault.New(fault.Mismatch, "the base is quantised (config.json says %s), and has no tensor %q", method, missing[0]).
			WithHint(naming.Dequantise)
	}
	return nil
}
