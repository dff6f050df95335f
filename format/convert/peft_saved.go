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

// PEFT puts a tensor of the file in the place of one of the base only where something says so:
// modules_to_save, bias, or its own rule for the embeddings (save_embedding_layers, a resized
// vocabulary), which leaves no trace in the configuration. A tensor that nothing speaks for came
// into the file by accident: from a whole checkpoint that was saved over the adapter, or beside it.

// taskHeads are the modules that PEFT saves for a task, whether the configuration lists them or
// not.
var taskHeads = map[string][]string{
	"SEQ_CLS":      {"classifier", "score"},
	"TOKEN_CLS":    {"classifier", "score"},
	"QUESTION_ANS": {"qa_outputs"},
}

// peftSaved are the fields of a configuration that decide which tensors stand in for the base's.
type peftSaved struct {
	modules []string // modules_to_save, and those of the task
	bias    string
}

func readSaved(config []byte) (s peftSaved) {
	var fields map[string]json.RawMessage // exact names: encoding/json matches those of a struct in any case
	jsontext.Decode(config, &fields)      // it has been parsed before
	var task, one string
	jsontext.Decode(fields["bias"], &s.bias)
	jsontext.Decode(fields["task_type"], &task)
	if jsontext.Decode(fields["modules_to_save"], &s.modules) != nil && jsontext.Decode(fields["modules_to_save"], &one) == nil {
		s.modules = []string{one}
	}
	s.modules = append(s.modules, taskHeads[task]...)
	return s
}

// covers reports whether the configuration says that the file may hold a parameter of the base, or
// PEFT takes it on loading whatever the configuration says.
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

// savesBias reports whether the configuration says that the bias of a module is saved: bias is
// "all", or "lora_only" and the module has factors, or modules_to_save lists it.
func (s *peftSaved) savesBias(module string, isAdapted bool) bool {
	return s.bias == "all" || isAdapted && strings.HasSuffix(s.bias, "_only") || s.saves(module)
}

// saves reports whether modules_to_save, or the task, lists a module or one around it.
func (s *peftSaved) saves(module string) bool {
	for path := module; path != ""; path = naming.Module(path) {
		if slices.ContainsFunc(s.modules, func(m string) bool { return m != "" && strings.HasSuffix(path, m) }) {
			return true // PEFT asks whether the path ends so, even in the middle of a segment
		}
	}
	return false
}

// addSaved lists the tensors that stand in for the base's, and those that only seem to. adapted are
// the modules with factors.
func (p *peftReader) addSaved(ctx context.Context, plain []peftKey, tensors []int,
	adapted map[string]map[peftRole]int) {
	prefixed := p.factors.some && !p.factors.bare // all keys of factors begin as PEFT writes them
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
		case isUntold && isAdapted && !isWrapped(name): // PEFT passes over it, too
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
		p.note("the configuration does not say that the adapter saves %s: they are used, as PEFT does on loading",
			fault.List(untold, 3))
	}
}

// isWrapped reports whether a key is of a parameter within a LoRA layer, where PEFT has those of
// the module that it wraps.
func isWrapped(key string) bool { return strings.Contains(key, ".base_layer.") }

func hasPEFTPrefix(key string) bool {
	return strings.HasPrefix(naming.StripWrappers(key), peftPrefix)
}
