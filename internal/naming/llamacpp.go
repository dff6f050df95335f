package naming

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// LlamaCpp knows the module names of the models of one architecture of llama.cpp.
type LlamaCpp struct {
	Name string // general.architecture, in a GGUF file
	// types are the model types of transformers, as config.json has them.
	types []string
	// blocks is the path of the blocks in transformers, with a dot at its end.
	blocks string
	// modules has pairs of names in llama.cpp and transformers: within a block if the first begins
	// with "blk.".
	modules map[string]string
	// norms has such pairs for the norms whose weights are stored as transformers stores them.
	// Those of Gemma are larger by one.
	norms map[string]string
	// inPairs says that q and k have their rows in the order of llama.cpp (spec/METHODS.md,
	// section 6).
	inPairs bool
}

// llamaCpp follows gguf-py's tensor_mapping.py and the classes that llama.cpp converts models with
// (conversion/*.py); testdata/gguf/names.txt is what these give.
var llamaCpp = []*LlamaCpp{
	{Name: "llama", types: []string{"llama", "mistral", "mixtral"}, norms: llamaNorms, modules: joined(llamaNames, mixtralExperts), inPairs: true},
	{Name: "granite", types: []string{"granite"}, norms: llamaNorms, modules: llamaNames, inPairs: true},
	{Name: "smollm3", types: []string{"smollm3"}, norms: llamaNorms, modules: llamaNames, inPairs: true},
	{Name: "qwen2", types: []string{"qwen2"}, norms: llamaNorms, modules: llamaNames},
	{Name: "qwen2moe", types: []string{"qwen2_moe"}, norms: llamaNorms, modules: joined(llamaNames, qwenExperts, sharedExpert)},
	{Name: "qwen3", types: []string{"qwen3"}, norms: joined(llamaNorms, headNorms), modules: llamaNames},
	{Name: "qwen3moe", types: []string{"qwen3_moe"}, norms: joined(llamaNorms, headNorms), modules: joined(llamaNames, qwenExperts)},
	{Name: "gemma", types: []string{"gemma"}, modules: llamaNames},
	{Name: "gemma2", types: []string{"gemma2"}, modules: llamaNames},
	{Name: "gemma3", types: []string{"gemma3_text", "gemma3"}, modules: llamaNames},
	{Name: "olmo2", types: []string{"olmo2"}, norms: joined(laterNorms, headNorms), modules: llamaNames},
	{Name: "command-r", types: []string{"cohere"}, norms: firstNorms, modules: llamaNames},
	{Name: "cohere2", types: []string{"cohere2"}, norms: firstNorms, modules: llamaNames},
	{Name: "gpt-oss", types: []string{"gpt_oss"}, modules: joined(llamaNames, map[string]string{
		"blk.ffn_gate_inp":  "mlp.router",
		"blk.ffn_gate_exps": "mlp.experts.gate_proj",
		"blk.ffn_up_exps":   "mlp.experts.up_proj",
		"blk.ffn_down_exps": "mlp.experts.down_proj",
	})},
	{Name: "phi3", types: []string{"phi3"}, norms: llamaNorms, modules: map[string]string{
		"token_embd": "model.embed_tokens", "output": "lm_head",
		"blk.attn_qkv":    "self_attn.qkv_proj",
		"blk.attn_output": "self_attn.o_proj",
		"blk.ffn_up":      "mlp.gate_up_proj",
		"blk.ffn_down":    "mlp.down_proj",
	}},
	{Name: "starcoder2", types: []string{"starcoder2"}, norms: llamaNorms, modules: map[string]string{
		"token_embd": "model.embed_tokens", "output": "lm_head",
		"blk.attn_q":      "self_attn.q_proj",
		"blk.attn_k":      "self_attn.k_proj",
		"blk.attn_v":      "self_attn.v_proj",
		"blk.attn_output": "self_attn.o_proj",
		"blk.ffn_up":      "mlp.c_fc",
		"blk.ffn_down":    "mlp.c_proj",
	}},
	{Name: "gpt2", types: []string{"gpt2"}, blocks: "transformer.h.", modules: map[string]string{
		"token_embd": "transformer.wte", "output": "lm_head",
		"blk.attn_qkv":    "attn.c_attn",
		"blk.attn_output": "attn.c_proj",
		"blk.ffn_up":      "mlp.c_fc",
		"blk.ffn_down":    "mlp.c_proj",
	}},
}

// llamaNames has the names of Llama, which most later models share.
var llamaNames = map[string]string{
	"token_embd": "model.embed_tokens", "output": "lm_head",
	"blk.attn_q":      "self_attn.q_proj",
	"blk.attn_k":      "self_attn.k_proj",
	"blk.attn_v":      "self_attn.v_proj",
	"blk.attn_output": "self_attn.o_proj",
	"blk.ffn_gate":    "mlp.gate_proj",
	"blk.ffn_up":      "mlp.up_proj",
	"blk.ffn_down":    "mlp.down_proj",
}

// The names of experts are those of one expert without its number, as llama.cpp stacks them.
var (
	mixtralExperts = map[string]string{
		"blk.ffn_gate_inp":  "block_sparse_moe.gate",
		"blk.ffn_gate_exps": "block_sparse_moe.experts.w1",
		"blk.ffn_up_exps":   "block_sparse_moe.experts.w3",
		"blk.ffn_down_exps": "block_sparse_moe.experts.w2",
	}
	qwenExperts = map[string]string{
		"blk.ffn_gate_inp":  "mlp.gate",
		"blk.ffn_gate_exps": "mlp.experts.gate_proj",
		"blk.ffn_up_exps":   "mlp.experts.up_proj",
		"blk.ffn_down_exps": "mlp.experts.down_proj",
	}
	sharedExpert = map[string]string{
		"blk.ffn_gate_inp_shexp": "mlp.shared_expert_gate",
		"blk.ffn_gate_shexp":     "mlp.shared_expert.gate_proj",
		"blk.ffn_up_shexp":       "mlp.shared_expert.up_proj",
		"blk.ffn_down_shexp":     "mlp.shared_expert.down_proj",
	}
)

var (
	firstNorms = map[string]string{"output_norm": "model.norm", "blk.attn_norm": "input_layernorm"}
	llamaNorms = joined(firstNorms, map[string]string{"blk.ffn_norm": "post_attention_layernorm"})
	laterNorms = map[string]string{
		"output_norm": "model.norm", "blk.post_attention_norm": "post_attention_layernorm", "blk.post_ffw_norm": "post_feedforward_layernorm",
	}
	headNorms = map[string]string{"blk.attn_q_norm": "self_attn.q_norm", "blk.attn_k_norm": "self_attn.k_norm"}
)

func joined(all ...map[string]string) map[string]string {
	sum := make(map[string]string)
	for _, m := range all {
		maps.Copy(sum, m)
	}
	return sum
}

// LlamaCppNamed returns the model of an architecture; nil if it is unknown.
func LlamaCppNamed(architecture string) *LlamaCpp {
	for _, m := range llamaCpp {
		if m.Name == architecture {
			return m
		}
	}
	return nil
}

// LlamaCppOfType returns the model of a model type of transformers; nil if it is unknown.
func LlamaCppOfType(modelType string) *LlamaCpp {
	for _, m := range llamaCpp {
		if slices.Contains(m.types, modelType) {
			return m
		}
	}
	return nil
}

// TypeInLlamaCpp returns the model type of transformers of a model in a GGUF file: the architecture
// itself if no type is known. llama.cpp has one name for Llama and for Mixtral, which has experts.
func TypeInLlamaCpp(architecture string, hasExperts bool) string {
	m := LlamaCppNamed(architecture)
	switch {
	case m == nil:
		return architecture
	case architecture == "llama" && hasExperts:
		return "mixtral"
	}
	return m.types[0]
}

// LlamaCppArchitectures lists the known architectures.
func LlamaCppArchitectures() string {
	var names []string
	for _, m := range llamaCpp {
		names = append(names, m.Name)
	}
	return strings.Join(names, ", ")
}

// blockPath returns the path of the blocks.
func (m *LlamaCpp) blockPath() string {
	if m.blocks != "" {
		return m.blocks
	}
	return "model.layers."
}

var blockName = regexp.MustCompile(`^blk\.(0|[1-9][0-9]{0,8})\.(.+)$`)

// Module returns the name in transformers of the module that has a tensor of llama.cpp as its
// weight. ok is false for any other tensor.
func (m *LlamaCpp) Module(tensor string) (module string, ok bool) { return m.in(m.modules, tensor) }

// in finds the module in one of the tables.
func (m *LlamaCpp) in(modules map[string]string, tensor string) (module string, ok bool) {
	name, ok := strings.CutSuffix(tensor, ".weight")
	if !ok {
		return "", false
	}
	if b := blockName.FindStringSubmatch(name); b != nil {
		module, ok = modules["blk."+b[2]]
		return m.blockPath() + b[1] + "." + module, ok
	}
	module, ok = modules[name]
	return module, ok && !strings.HasPrefix(name, "blk.")
}

// Tensor returns the name in llama.cpp of the weight of a module; ok is false if it has none. The
// module may have the prefixes of a model of text and images.
func (m *LlamaCpp) Tensor(module string) (tensor string, ok bool) {
	module = trimModel(module)
	blocks := trimModel(m.blockPath())
	for name, of := range m.modules {
		within, isBlock := strings.CutPrefix(name, "blk.")
		if !isBlock {
			if module == trimModel(of) {
				return name + ".weight", true
			}
			continue
		}
		rest, ends := strings.CutSuffix(module, "."+of)
		n, begins := strings.CutPrefix(rest, blocks)
		if ends && begins && blockName.MatchString("blk."+n+".x") {
			return "blk." + n + "." + within + ".weight", true
		}
	}
	return "", false
}

// modelPrefixes are the paths of a language model in the classes of transformers, the longest
// first.
var modelPrefixes = []string{
	"model.language_model.", "language_model.model.", "language_model.", "transformer.", "model.",
}

// trimModel removes the path of the language model from a name.
func trimModel(name string) string {
	for _, p := range modelPrefixes {
		if rest, ok := strings.CutPrefix(name, p); ok {
			return rest
		}
	}
	return name
}

// IndexOf indexes the tensor names of a base: of one in a GGUF file of this architecture by the
// names of transformers, as far as they are known. A stack of experts is a parameter, without
// ".weight". Any other base has the architecture "".
func IndexOf(names []string, architecture string) *Base {
	m := LlamaCppNamed(architecture)
	if m == nil {
		return Index(names)
	}
	b := indexBy(names, func(name string) string {
		module, leaf, ok := m.Translate(name)
		switch {
		case !ok:
			return StripWrappers(name)
		case IsStackOfLlamaCpp(name):
			return module
		}
		return module + "." + leaf
	})
	b.isTranslated = true
	return b
}

// Translate returns the name in transformers of a tensor of llama.cpp: its module and the last
// part, weight or bias. The experts of a stack have one name without a number. ok is false for a
// tensor that is not known, and for biases of experts.
func (m *LlamaCpp) Translate(tensor string) (module, leaf string, ok bool) {
	weight := Module(tensor) + ".weight"
	if leaf = Leaf(tensor); leaf != "weight" && leaf != "bias" || IsStackOfLlamaCpp(weight) && leaf == "bias" {
		return "", "", false
	}
	if module, ok = m.Module(weight); !ok {
		module, ok = m.in(m.norms, weight)
	}
	return module, leaf, ok
}

// IsStackOfLlamaCpp reports whether a tensor of llama.cpp stacks the weights of experts.
func IsStackOfLlamaCpp(tensor string) bool { return strings.HasSuffix(tensor, "_exps.weight") }

// Reshapes reports whether transformers stores some weights in other shapes: those of Conv1D with
// the dimensions exchanged, and gate and up of gpt-oss in one tensor.
func (m *LlamaCpp) Reshapes() bool { return m.Name == "gpt2" || m.Name == "gpt-oss" }

// HasHead reports whether llama.cpp loads a head of its own, output.weight, if the file has one.
func (m *LlamaCpp) HasHead() bool {
	return !slices.Contains([]string{"gemma", "gemma2", "command-r", "cohere2"}, m.Name)
}

// ExpertModule returns the module of expert e of a stack that Translate calls module.
func ExpertModule(module string, e int) string {
	at := strings.LastIndex(module, ".")
	return module[:at+1] + strconv.Itoa(e) + module[at:]
}

// HasPairs reports whether a tensor has its rows in the order of llama.cpp.
func (m *LlamaCpp) HasPairs(tensor string) bool {
	return m.inPairs && blockName.MatchString(tensor) && (Leaf(Module(tensor)) == "attn_q" || Leaf(Module(tensor)) == "attn_k")
}

// BlockOf returns the number of the block that a tensor of llama.cpp belongs to, -1 for one of
// none.
func BlockOf(tensor string) int {
	if b := blockName.FindStringSubmatch(tensor); b != nil {
		n, _ := strconv.Atoi(b[1])
		return n
	}
	return -1
}

// ExpertsOf returns the number of the block whose experts a module of transformers holds.
func (m *LlamaCpp) ExpertsOf(module string) (block string, ok bool) {
	if _, has := m.modules["blk.ffn_down_exps"]; !has {
		return "", false
	}
	module = trimModel(module)
	for _, path := range []string{".mlp.experts", ".block_sparse_moe.experts"} {
		rest, ends := strings.CutSuffix(module, path)
		n, begins := strings.CutPrefix(rest, trimModel(m.blockPath()))
		if ends && begins && blockName.MatchString("blk."+n+".x") {
			return n, true
		}
	}
	return "", false
}
