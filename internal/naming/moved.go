package naming

import (
	"regexp"
	"strings"
)

// Between versions 4 and 5 transformers has renamed modules of many models, in memory but not in the checkpoints that exist; an adapter
// has the names of the version that it was trained with. These tables say what became of what. They are used both ways, and only
// where all names of an adapter are in the base then.

// move is a set of renamings that go together.
type move struct {
	models       string // the families, for messages
	newer, older []replacement
}

type replacement struct {
	old *regexp.Regexp
	new string
}

// apply renames a path to the newer names, or to the older ones.
func (m *move) apply(name string, toNewer bool) string {
	list := m.older
	if toNewer {
		list = m.newer
	}
	for _, r := range list {
		name = r.old.ReplaceAllString(name, r.new)
	}
	return name
}

// moves are the tables: pairs of an older and a newer segment or two, "^" at the beginning of a path only, "#" for a number. They
// are applied one after the other, the special ones first.
var moves = []*move{
	newMove("Mixtral and MiniMax", ".block_sparse_moe.", ".mlp."),
	newMove("PhiMoE", ".block_sparse_moe.gate.", ".mlp.router.", ".block_sparse_moe.", ".mlp."),
	newMove("LLaVA and its kin", "^language_model.lm_head.", "^lm_head.", "^language_model.model.", "^model.language_model.",
		"^vision_tower.", "^model.vision_tower.", "^multi_modal_projector.", "^model.multi_modal_projector.", "^image_newline.", "^model.image_newline."),
	newMove("Mllama", "^language_model.lm_head.", "^lm_head.", "^language_model.model.", "^model.language_model.",
		"^vision_model.", "^model.vision_model.", "^multi_modal_projector.", "^model.multi_modal_projector."),
	newMove("Qwen2-VL and Qwen2.5-VL", "^visual.", "^model.visual.", "^model.layers.", "^model.language_model.layers.",
		"^model.embed_tokens.", "^model.language_model.embed_tokens.", "^model.norm.", "^model.language_model.norm."),
	newMove("ViT and its kin", ".encoder.layer.#.attention.attention.query.", ".layers.#.attention.q_proj.",
		".encoder.layer.#.attention.attention.key.", ".layers.#.attention.k_proj.",
		".encoder.layer.#.attention.attention.value.", ".layers.#.attention.v_proj.",
		".encoder.layer.#.attention.output.dense.", ".layers.#.attention.o_proj.",
		".encoder.layer.#.intermediate.dense.", ".layers.#.mlp.fc1.",
		".encoder.layer.#.output.dense.", ".layers.#.mlp.fc2.", ".encoder.layer.#.", ".layers.#."),
	newMove("DINOv2", ".attention.attention.query.", ".attention.q_proj.", ".attention.attention.key.", ".attention.k_proj.",
		".attention.attention.value.", ".attention.v_proj.", ".attention.output.dense.", ".attention.o_proj."),
	newMove("Swin", ".attention.self.query.", ".attention.q_proj.", ".attention.self.key.", ".attention.k_proj.",
		".attention.self.value.", ".attention.v_proj.", ".attention.output.dense.", ".attention.o_proj.",
		".intermediate.dense.", ".mlp.fc1.", ".output.dense.", ".mlp.fc2."),
}

// newMove makes a table of pairs of older and newer names.
func newMove(models string, pairs ...string) *move {
	m := &move{models: models}
	for i := 0; i < len(pairs); i += 2 {
		older, newer := pairs[i], pairs[i+1]
		m.newer = append(m.newer, newReplacement(older, newer))
		m.older = append(m.older, newReplacement(newer, older))
	}
	return m
}

// newReplacement makes one renaming. A path is matched with a dot in front.
func newReplacement(from, to string) replacement {
	var pattern strings.Builder
	from, atStart := strings.CutPrefix(from, "^")
	if atStart {
		pattern.WriteString("^")
	} else {
		from = strings.TrimPrefix(from, ".")
		pattern.WriteString(`(^|\.)`)
	}
	pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(from), "#", `(\d+)`))
	to, _ = strings.CutPrefix(to, "^")
	group := "${1}"
	if !atStart {
		to, group = "${1}"+strings.TrimPrefix(to, "."), "${2}"
	}
	return replacement{regexp.MustCompile(pattern.String()), strings.ReplaceAll(to, "#", group)}
}
