package convert

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// PEFT saves a tensor of the base only on a reason: modules_to_save, bias, or its own rule for
// embeddings (save_embedding_layers, a resized vocabulary), which leaves no trace in the
// configuration. Any other tensor got into the file by accident, for example because a whole
// checkpoint was saved over the adapter.
//
// PEFT 0.21.2 is less strict when it loads. It copies each tensor whose key names a parameter of
// the model with LoRA layers, whatever the configuration says, and silently ignores all other keys.
// A LoRA layer holds its module as base_layer. So for an adapted module q and another module o,
// PEFT loads q.base_layer.bias and o.bias, and ignores q.bias and o.base_layer.bias, with every
// value of bias. Weights follow the same rule; this reader refuses them, because a weight that
// nothing lists is far more likely a mistake. Releases before 0.7 had no base_layer: they wrote and
// loaded q.bias, so it counts where bias or modules_to_save lists it.

// taskHeads lists the modules that PEFT saves for a task even if the configuration does not list
// them.
var taskHeads = map[string][]string{
	"SEQ_CLS":      {"classifier", "score"},
	"TOKEN_CLS":    {"classifier", "score"},
	"QUESTION_ANS": {"qa_outputs"},
}

// peftSaved holds the fields of a configuration that decide which tensors replace those of the
// base.
type peftSaved struct {
	listed  []string // modules_to_save
	modules []string // and the modules of the task
	bias    string
}

func readSaved(config []byte) (s peftSaved) {
	var fields map[string]json.RawMessage // exact names: encoding/json ignores case for the fields of a struct
	jsontext.Decode(config, &fields)      // it parsed before
	var task, one string
	jsontext.Decode(fields["bias"], &s.bias)
	jsontext.Decode(fields["task_type"], &task)
	if jsontext.Decode(fields["modules_to_save"], &s.modules) != nil && jsontext.Decode(fields["modules_to_save"], &one) == nil {
		s.modules = []string{one}
	}
	s.listed = slices.Clip(s.modules)
	s.modules = append(s.listed, taskHeads[task]...)
	return s
}

// covers reports whether the file may replace a parameter of the base: the configuration lists it,
// or PEFT loads it whatever the configuration says.
func (s *peftSaved) covers(parameter string) bool {
	module := naming.Module(parameter)
	switch {
	case strings.HasSuffix(parameter, ".bias"):
		return true // see addSaved
	case naming.IsInputEmbedding(module) || naming.IsHead(module):
		return true
	}
	return s.saves(module)
}

// savesBias reports whether the configuration lists the bias of a module as saved: bias is "all",
// or "lora_only" for a module with factors, or modules_to_save lists the module.
func (s *peftSaved) savesBias(module string, isAdapted bool) bool {
	return s.bias == "all" || isAdapted && strings.HasSuffix(s.bias, "_only") || s.saves(module)
}

// saves reports whether modules_to_save or the task lists a module or one of its parents.
func (s *peftSaved) saves(module string) bool {
	for path := module; path != ""; path = naming.Module(path) {
		if slices.ContainsFunc(s.modules, func(m string) bool { return m != "" && strings.HasSuffix(path, m) }) {
			return true // PEFT compares the end of the path, even within a segment
		}
	}
	return false
}

// addSaved adds the tensors that replace those of the base, and lists the stray ones. adapted are
// the modules with factors.
func (p *peftReader) addSaved(ctx context.Context, plain []peftKey, tensors []int,
	adapted map[string]map[peftRole]int) {
	prefixed := p.factors.some && !p.factors.bare // all keys of factors begin with PEFT's prefix
	var untold []string
	for i, key := range plain {
		if ctx.Err() != nil {
			return
		}
		name, module := p.tensors[tensors[i]].Name, naming.Module(key.module)
		_, isAdapted := adapted[module]
		isUntold := key.adapter == "" && strings.HasSuffix(key.module, ".bias") &&
			!p.saved.savesBias(module, isAdapted)
		switch {
		case prefixed && !hasPEFTPrefix(name):
			p.stray(tensors[i], name+" (without the prefix "+peftPrefix+" of the other keys)")
		case key.adapter == "" && !p.saved.covers(key.module):
			p.stray(tensors[i], name)
		case isUntold && isAdapted && !isWrapped(name), isWrapped(name) && !isAdapted:
			// PEFT ignores them
			p.stray(tensors[i], name)
		default:
			if isUntold {
				untold = append(untold, key.module)
			}
			p.out.Beside = append(p.out.Beside, format.Beside{
				Action: format.Replace, Target: key.module, Tensor: tensors[i],
			})
		}
	}
	if len(untold) > 0 {
		p.note("the configuration does not list %s as saved (bias, modules_to_save), but PEFT loads "+
			"every bias that the model has, so merge applies it", fault.List(untold, 3))
	}
}

// savedKey returns PEFT's key for a parameter that replaces one of the base. A module with factors
// keeps its own parameters in base_layer.
func savedKey(a *format.Adapter, parameter string) string {
	module := naming.Module(parameter)
	if slices.ContainsFunc(a.Layers, func(l format.Layer) bool { return l.Module == module }) {
		return peftPrefix + module + ".base_layer." + naming.Leaf(parameter)
	}
	return peftPrefix + parameter
}

// amendSaved adds the modules to the configuration's modules_to_save whose parameters the adapter
// replaces and which the configuration does not list.
func amendSaved(config []byte, a *format.Adapter) ([]byte, error) {
	saved := readSaved(config)
	var more []string
	for i := range a.Beside {
		b := &a.Beside[i]
		if b.Action != format.Replace || saved.covers(b.Target) {
			continue
		}
		module, err := savedModule(a, b.Target)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(more, module) {
			more = append(more, module)
		}
	}
	if more == nil {
		return config, nil
	}
	slices.Sort(more)
	all, err := json.Marshal(append(saved.listed, more...))
	return jsontext.Set(config, string(all), "modules_to_save"), err
}

// savedModule returns the module for modules_to_save that holds a parameter. PEFT saves such a
// module with all that it holds, so there must be no factors in it.
func savedModule(a *format.Adapter, parameter string) (string, error) {
	module, _, _ := strings.Cut(naming.Module(parameter), ".parametrizations.") // parameters of the module before
	for i := range a.Layers {
		if l := a.Layers[i].Module; l == module || strings.HasPrefix(l, module+".") || module == "" {
			return "", fault.New(fault.Unsupported, "the adapter replaces %q, and PEFT cannot save that: it would "+
				"save the module %q, which has the factors of %q", parameter, module, l).
				WithHint("keep the adapter as a .lora file")
		}
	}
	return module, nil
}

// isWrapped reports whether a key belongs to a parameter inside a LoRA layer, where PEFT keeps
// those of the module it wraps. Trained tokens keep theirs in token_adapter.base_layer, and their
// module needs no factors.
func isWrapped(key string) bool {
	return strings.Contains(strings.ReplaceAll(key, ".token_adapter.base_layer.", "."), ".base_layer.")
}

func hasPEFTPrefix(key string) bool {
	return strings.HasPrefix(naming.StripWrappers(key), peftPrefix)
}
