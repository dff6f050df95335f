package naming

import (
	"cmp"
	"slices"
	"strings"
)

// A Division is a module that some language models have in place of several projections: rows of
// its weight are those of a projection (spec/NAMES.md, section 3).
type Division struct {
	Fused  string // the last segment of the module's path, or the last two
	Parts  []Portion
	groups grouping
	bases  []string // model types that have the module
	others []string // model types of bases that can have the parts in its place, or anyType
}

// Portion is one projection of a division.
type Portion struct {
	Module string // as Fused; "" for rows that no projection has
	rows   measure
}

// measure says how many rows a portion has.
type measure byte

const (
	share     measure = 0   // an equal share of the rows that the others leave
	ofHeads   measure = 'h' // as many as the attention heads have together
	ofKeys    measure = 'k' // as many as the heads of linear attention have for keys
	ofMamba   measure = 'm' // as many as the heads of Mamba have together
	anyType           = "any"
	remainder         = "rest"
)

// grouping says in how many runs the rows of every portion lie.
type grouping string

const (
	oneRun    grouping = "1"
	byKVHeads grouping = "kv"  // a run for each head of the last portion
	byKeys    grouping = "key" // a run for each key head of linear attention
)

// Widths are the numbers of a model's configuration that divide weights; 0 where it does not say.
type Widths struct {
	ModelType         string
	Heads, HeadSize   uint64 // of attention
	KeyHeads, KeySize uint64 // of linear attention
	Mamba, MambaSize  uint64 // heads of Mamba and their size
	MultiQuery        bool   // multi_query_attention
}

// Or returns the numbers with those of other where they are 0. The model type stays.
func (w Widths) Or(other Widths) Widths {
	return Widths{
		w.ModelType, cmp.Or(w.Heads, other.Heads), cmp.Or(w.HeadSize, other.HeadSize),
		cmp.Or(w.KeyHeads, other.KeyHeads), cmp.Or(w.KeySize, other.KeySize),
		cmp.Or(w.Mamba, other.Mamba), cmp.Or(w.MambaSize, other.MambaSize), w.MultiQuery || other.MultiQuery,
	}
}

// divisions are all that are known, the likelier one first where two fit.
var divisions = []*Division{
	newDivision("qkv_proj", "q_proj:h + k_proj + v_proj", oneRun, "phi3 phi3_v phi4mm phi4_multimodal", anyType),
	// The audio half of Phi-4-multimodal has them the other way round.
	newDivision("gate_up_proj", "gate_proj + up_proj", oneRun,
		"phi3 phi3_v glm glm4 glm4v glm_ocr zamba2 dia", anyType),
	newDivision("W_pack", "q_proj + k_proj + v_proj", oneRun, "baichuan", "llama"),
	newDivision("c_attn", "q_proj + k_proj + v_proj", oneRun,
		"gpt2 openai-gpt imagegpt decision_transformer qwen", ""),
	newDivision("attn.c_attn", "self_attn.q_proj + self_attn.k_proj + self_attn.v_proj", oneRun, "qwen", "llama mistral qwen2"),
	newDivision("c_attn", "q_proj:h + k_proj + v_proj", byKVHeads, "gpt_bigcode", ""),
	newDivision("query_key_value", "q_proj:h + k_proj + v_proj", byKVHeads,
		"bloom falcon RefinedWeb RefinedWebModel gpt_neox gpt_neox_japanese persimmon", ""),
	newDivision("query_key_value", "query:h + key + value", byKVHeads,
		"bloom falcon RefinedWeb RefinedWebModel gpt_neox gpt_neox_japanese persimmon", ""),
	newDivision("query_key_value", "q_proj:h + k_proj + v_proj", oneRun, "chatglm", ""),
	newDivision("self_attention.query_key_value", "self_attn.q_proj:h + self_attn.k_proj + self_attn.v_proj", oneRun,
		"chatglm", "glm glm4"),
	newDivision("dense_h_to_4h", "gate_proj + up_proj", oneRun, "chatglm", ""),
	newDivision("wqkv", "wq:h + wk + wv", byKVHeads, "internlm2", ""),
	newDivision("attention.wqkv", "self_attn.q_proj:h + self_attn.k_proj + self_attn.v_proj", byKVHeads, "internlm2", "llama"),
	newDivision("Wqkv", "q_proj + k_proj + v_proj", oneRun, "mpt modernbert modernbert-decoder", ""),
	newDivision("self_attention.linear_qkv", "self_attn.q_proj:h + self_attn.k_proj + self_attn.v_proj", byKVHeads, "",
		"gemma gemma2 gemma3 gemma3_text llama mistral mixtral nemotron qwen2 qwen2_moe qwen3 qwen3_moe starcoder2"),
	newDivision("mlp.linear_fc1", "mlp.gate_proj + mlp.up_proj", oneRun, "",
		"gemma gemma2 gemma3 gemma3_text llama mistral qwen2 qwen2_moe qwen3 qwen3_moe"),
	newDivision("in_proj_qkv", "in_proj_q:k + in_proj_k:k + in_proj_v", oneRun,
		"qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text qwen4_exp", ""),
	newDivision("in_proj_qkvz", "in_proj_q:k + in_proj_k:k + in_proj_v + in_proj_z", byKeys, "qwen3_next", ""),
	newDivision("in_proj_ba", "in_proj_b + in_proj_a", byKeys, "qwen3_next", ""),
	newDivision("in_proj", "gate_proj:m + x_proj:m + rest", oneRun, "nemotron_h", ""),
}

// newDivision makes a division of parts as the specification writes them: modules joined by " + ",
// each with its measure behind a colon.
func newDivision(fused, parts string, groups grouping, bases, others string) *Division {
	d := &Division{Fused: fused, groups: groups, bases: strings.Fields(bases), others: strings.Fields(others)}
	for part := range strings.SplitSeq(parts, " + ") {
		module, mark, _ := strings.Cut(part, ":")
		p := Portion{Module: module}
		if mark != "" {
			p.rows = measure(mark[0])
		}
		if module == remainder {
			p.Module = ""
		}
		d.Parts = append(d.Parts, p)
	}
	return d
}

// Divided is a layer of an adapter whose module the base has in another division.
type Divided struct {
	*Division
	Part   int    // the number of the part that the layer is for; -1 if it is for the fused module
	Around string // the path in front of the module, with its dot
}

// Weights lists the weights of the base that stand for the layer: the fused one, or those of the
// parts.
func (d *Divided) Weights() []string {
	if d.Part >= 0 {
		return []string{d.Around + d.Fused + ".weight"}
	}
	var names []string
	for _, p := range d.Parts {
		names = append(names, d.Around+p.Module+".weight")
	}
	return names
}

// Divide looks for a module of an adapter in another division; nil if the base has the module as it
// is, or has it in no division that is known for its type.
func Divide(b *Base, module string, w Widths) *Divided {
	if HasWeight(b, module, 2) {
		return nil
	}
	for _, d := range divisions {
		for i, part := range d.Parts {
			around, ok := cutPath(module, part.Module)
			if ok && d.isOf(w) && b.HasTail(lastTwo(around+d.Fused)+".weight") {
				return &Divided{d, i, around}
			}
		}
		around, ok := cutPath(module, d.Fused)
		if ok && (slices.Contains(d.others, anyType) || slices.Contains(d.others, w.ModelType)) && d.isApartIn(b, around) {
			return &Divided{d, -1, around}
		}
	}
	return nil
}

// isOf reports whether models of this type have the fused module. ChatGLM has had another order of
// rows before it had multi-query attention.
func (d *Division) isOf(w Widths) bool {
	return slices.Contains(d.bases, w.ModelType) && (w.ModelType != "chatglm" || w.MultiQuery)
}

// isApartIn reports whether a base has the weights of all parts.
func (d *Division) isApartIn(b *Base, around string) bool {
	return !slices.ContainsFunc(d.Parts, func(p Portion) bool {
		return p.Module == "" || !b.HasTail(lastTwo(around+p.Module)+".weight")
	})
}

// cutPath cuts a path from the end of a module's path.
func cutPath(module, path string) (around string, ok bool) {
	around, ok = strings.CutSuffix(module, path)
	return around, ok && path != "" && (around == "" || strings.HasSuffix(around, "."))
}

// lastTwo returns the last two segments of a path.
func lastTwo(path string) string {
	return join(Leaf(Module(path)), Leaf(path))
}

// Rows returns the rows of each part of a fused weight of so many rows. missing names the members
// of config.json that it needs and that w lacks. rows is nil if the weight cannot be divided so.
func (d *Division) Rows(total uint64, w Widths) (rows []uint64, missing string) {
	left, nShares := total, uint64(0)
	for _, p := range d.Parts {
		n, names := p.rows.of(w)
		switch {
		case p.rows == share:
			nShares++
		case n == 0:
			return nil, names
		case n > left:
			return nil, ""
		}
		left -= n
		rows = append(rows, n)
	}
	if nShares == 0 && left != 0 || nShares > 0 && (left == 0 || left%nShares != 0) {
		return nil, ""
	}
	for i, p := range d.Parts {
		if p.rows == share {
			rows[i] = left / nShares
		}
	}
	return rows, ""
}

// of returns the number of rows that a measure means, and the members of config.json that say it.
func (m measure) of(w Widths) (n uint64, names string) {
	switch m {
	case ofHeads:
		return w.Heads * w.HeadSize, "num_attention_heads and hidden_size"
	case ofKeys:
		return w.KeyHeads * w.KeySize, "linear_num_key_heads and linear_key_head_dim"
	case ofMamba:
		return w.Mamba * w.MambaSize, "mamba_num_heads and mamba_head_dim"
	}
	return 0, ""
}

// Groups returns the number of runs in which the rows of the parts lie. missing is as in Rows; n is
// 0 if the rows do not fall into such runs.
func (d *Division) Groups(rows []uint64, w Widths) (n uint64, missing string) {
	switch n = 1; d.groups {
	case byKVHeads:
		if w.HeadSize == 0 {
			return 0, "num_attention_heads and hidden_size"
		}
		last := rows[len(rows)-1]
		if last%w.HeadSize != 0 {
			return 0, ""
		}
		n = last / w.HeadSize
	case byKeys:
		if n = w.KeyHeads; n == 0 {
			return 0, "linear_num_key_heads"
		}
	}
	if n == 0 || slices.ContainsFunc(rows, func(r uint64) bool { return r%n != 0 }) {
		return 0, ""
	}
	return n, ""
}
