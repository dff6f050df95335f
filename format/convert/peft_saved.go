package convert

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// PEFT puts a tensor of the file in the place of one of the base only where something says so: modules_to_save, bias, or its own
// rule for the embeddings (save_embedding_layers, a resized vocabulary), which leaves no trace in the configuration. A tensor that
// nothing speaks for came into the file by accident: from a whole checkpoint that was saved over the adapter, or beside it.

// taskHeads are the modules that PEFT saves for a task, whether the configuration lists them or not.
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
	json.Unmarshal(config, &fields)       // it has been parsed before
	var task, one string
	json.Unmarshal(fields["bias"], &s.bias)
	json.Unmarshal(fields["task_type"], &task)
	if json.Unmarshal(fields["modules_to_save"], &s.modules) != nil && json.Unmarshal(fields["modules_to_save"], &one) == nil {
		s.modules = []string{one}
	}
	s.modules = append(s.modules, taskHeads[task]...)
	return s
}

// covers reports whether the configuration says that the file may hold a parameter of the base.
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

// saves reports whether modules_to_save, or the task, lists a module or one around it.
func (s *peftSaved) saves(module string) bool {
	for path := module; path != ""; path = naming.Module(path) {
		if slices.ContainsFunc(s.modules, func(m string) bool { return m != "" && strings.HasSuffix(path, m) }) {
			return true // PEFT asks whether the path ends so, even in the middle of a segment
		}
	}
	return false
}

// isUntoldBias reports whether the configuration denies a bias that the file holds.
func (s *peftSaved) isUntoldBias(parameter string) bool {
	return (s.bias == "" || s.bias == "none") && strings.HasSuffix(parameter, ".bias") && !s.saves(naming.Module(parameter))
}

// addSaved lists the tensors that stand in for the base's, and those that only seem to.
func (p *peftReader) addSaved(ctx context.Context, plain []peftKey, tensors []int) {
	prefixed := p.factors.some && !p.factors.bare // all keys of factors begin as PEFT writes them
	var untold []string
	for i, key := range plain {
		if ctx.Err() != nil {
			return
		}
		name := p.tensors[tensors[i]].Name
		switch {
		case prefixed && !hasPEFTPrefix(name):
			p.stray(tensors[i], name+" (without the prefix "+peftPrefix+" of the other keys)")
		case key.adapter == "" && !p.saved.covers(key.module):
			p.stray(tensors[i], name)
		default:
			if p.saved.isUntoldBias(key.module) {
				untold = append(untold, key.module)
			}
			p.out.Beside = append(p.out.Beside, format.Beside{Action: format.Replace, Target: key.module, Tensor: tensors[i]})
		}
	}
	if len(untold) > 0 {
		p.note("the configuration says that no bias was trained, and the file holds %s: they are used, as PEFT does on loading", fault.List(untold, 3))
	}
}

func hasPEFTPrefix(key string) bool {
	return strings.HasPrefix(naming.StripWrappers(key), peftPrefix)
}
