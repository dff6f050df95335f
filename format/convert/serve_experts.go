package convert

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// packedExperts are the model types whose stacked experts vLLM reads as PEFT writes them: its
// classes with is_3d_moe_weight.
var packedExperts = []string{"gpt_oss", "interns1_pro", "qwen3_5_moe", "qwen3_vl_moe"}

// singleExperts are model types whose experts vLLM and SGLang read one by one.
var singleExperts = map[string]*expertNames{
	"deepseek_v2": projNames, "deepseek_v3": projNames, "dots1": projNames, "ernie4_5_moe": projNames,
	"glm4_moe": projNames, "olmoe": projNames, "qwen2_moe": projNames, "qwen3_moe": projNames,
	"qwen3_next": projNames,
	"mixtral":    {"w1", "w3", "w2", ".block_sparse_moe."}, // transformers 5 calls the module mlp
}

var projNames = &expertNames{"gate_proj", "up_proj", "down_proj", ""}

// expertNames are the names of the projections of an expert, and that of the module around the
// experts if it is not ".mlp.".
type expertNames struct{ gate, up, down, around string }

// partsOf returns the projections that make up a stacked parameter, in the order of its rows.
func (x *expertNames) partsOf(parameter string) []string {
	if parameter == "gate_up_proj" {
		return []string{x.gate, x.up}
	}
	return []string{x.down}
}

// chooseExperts decides how stacked experts are written.
func (s *served) chooseExperts() error {
	var stacked, single string
	for _, l := range s.layers {
		if l.experts > 0 {
			stacked = l.name
		} else if strings.Contains(l.name, ".experts.") {
			single = l.name
		}
	}
	model := s.base.ModelType
	s.names = singleExperts[model]
	switch {
	case stacked == "" && single != "" && s.server.isPacked && slices.Contains(packedExperts, model):
		s.remark("%s reads stacked experts for a %s: start it with enable_mixed_moe_lora_format, as this "+
			"adapter has them one by one", s.title, model)
		fallthrough
	case stacked == "":
		s.remarkIncomplete()
		return nil
	case s.server.isPacked && model == "":
		s.pack = true
		s.remark("the experts stay stacked, as PEFT has them, and %s reads them one by one for most models: "+
			"name the base (CreateOptions.BaseConfig)", s.title)
	case s.server.isPacked && slices.Contains(packedExperts, model):
		s.pack = true
	case s.names != nil:
		s.remark("each expert gets factors of its own, as %s reads them for a %s; PEFT does not load these "+
			"into a model with stacked experts", s.title, model)
	case model == "":
		return fault.New(fault.Unsupported, "%s reads experts one by one, and nothing says how the base "+
			"stacks those of %q", s.title, stacked).WithHint("name the base (CreateOptions.BaseConfig)")
	default:
		return fault.New(fault.Unsupported, "how %s reads the experts of a %s is not known here (%s)", s.title,
			model, stacked).WithHint(hintServed)
	}
	return s.checkStacks()
}

// oneOfExperts matches the module of one projection of one expert.
var oneOfExperts = regexp.MustCompile(`^(.*\.experts\.[0-9]+)\.[a-z0-9_]+$`)

// remarkIncomplete names an expert without factors for all of its three projections.
func (s *served) remarkIncomplete() {
	n := make(map[string]int)
	for _, l := range s.layers {
		if m := oneOfExperts.FindStringSubmatch(l.name); m != nil {
			n[m[1]]++
		}
	}
	for _, expert := range slices.Sorted(maps.Keys(n)) {
		if n[expert] < 3 {
			s.remark("%s wants factors of all three projections of an expert, and %q has %d", s.title, expert, n[expert])
			return
		}
	}
}

// checkStacks checks the stacked experts of each module: both parameters are there, and A reads
// the inputs of an expert.
func (s *served) checkStacks() error {
	byModule := make(map[string]map[string]*servedLayer)
	for _, l := range s.layers {
		if l.experts == 0 {
			continue
		}
		module, parameter := s.stackOf(l)
		if byModule[module] == nil {
			byModule[module] = make(map[string]*servedLayer)
		}
		byModule[module][parameter] = l
	}
	for _, module := range slices.Sorted(maps.Keys(byModule)) {
		layers := byModule[module]
		first, second := layers["gate_up_proj"], layers["down_proj"]
		if first == nil || second == nil || len(layers) != 2 {
			return fault.New(fault.Unsupported, "%s takes factors of gate_up_proj and down_proj together, and "+
				"%q has not both", s.title, module).WithHint(hintServed)
		}
		hidden, inner := second.factors[format.RoleB].shape[0], second.factors[format.RoleA].shape[1]
		if second.kind == format.Expert && hidden == inner {
			return fault.New(fault.Unsupported, "the experts of %q are square, and nothing says whether lora_A "+
				"reads their inputs, as %s wants it", module, s.title).WithHint(hintServed)
		}
		if in, out := first.factors[format.RoleA].shape[1], first.factors[format.RoleB].shape[0]; in != hidden ||
			out != 2*inner || first.experts != second.experts {
			return fault.New(fault.Unsupported, "lora_A of %q does not read the inputs of the experts, as %s "+
				"wants it: releases of PEFT differ", module, s.title).WithHint(hintServed)
		}
	}
	return nil
}

// stackOf returns the module of stacked experts and the parameter that a layer belongs to.
func (s *served) stackOf(l *servedLayer) (module, parameter string) {
	module, depth := naming.CutNesting(l.name)
	names := naming.ParametersOf(module, s.parameters())
	if depth >= len(names) {
		return module, ""
	}
	return module, names[len(names)-1-depth]
}

// parameters lists the parameters of stacked experts, as target_parameters does.
func (s *served) parameters() (all []string) {
	for _, r := range s.a.Requires {
		if r.Feature == format.FeatureExperts {
			all = append(all, r.Where)
		}
	}
	return all
}

// addExperts adds the factors of each expert, those of gate_proj and up_proj with the same A.
func (s *served) addExperts(l *servedLayer) {
	module, parameter := s.stackOf(l)
	parts := s.names.partsOf(parameter)
	a, b := l.factors[format.RoleA], l.factors[format.RoleB]
	rank, rows := uint64(s.rank), b.shape[0]/uint64(len(parts))
	for e := range l.experts {
		for i, part := range parts {
			name := fmt.Sprintf("%s.%d.%s.", module, e, part)
			s.add(name+"lora_A.weight", a, []uint64{rank, a.shape[1]}, &expertPart{row: e * s.rank, step: 1})
			s.add(name+"lora_B.weight", b, []uint64{rows, rank},
				&expertPart{row: i * int(rows), col: e, step: l.experts})
		}
	}
}
