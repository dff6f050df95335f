package naming

import (
	"strings"
	"testing"
)

// TestDiagnose: the base's own names say why it lacks a tensor.
func TestDiagnose(t *testing.T) {
	const l = "model.layers.0."
	for _, c := range []struct {
		name          string
		base          string // a tensor that the base has
		wanted, words string // "": the names do not tell
	}{
		{"a base with PEFT's layers", l + "q_proj.base_layer.weight", l + "q_proj.weight", "adapter of its own"},
		{"a wrapped model", "base_model.model." + l + "q_proj.base_layer.weight", l + "q_proj.weight", "adapter of its own"},
		{"fused", l + "self_attn.qkv_proj.weight", l + "self_attn.k_proj.weight", "in one"},
		{"fused gates", l + "mlp.gate_up_proj.weight", l + "mlp.up_proj.weight", "in one"},
		{"split", l + "self_attn.q_proj.weight", l + "self_attn.qkv_proj.weight", "apart; the adapter has"},
		{"split mixers", l + "attn.in_proj_qkv.weight", l + "attn.in_proj_k.weight", "in one"},
		{"layers of PEFT twice", l + "q_proj.base_layer.base_layer.weight", l + "q_proj.weight", "adapter of its own"},
		{"layers of PEFT behind a prefix", "model.language_model.layers.0.q_proj.base_layer.weight", l + "q_proj.weight", "adapter of its own"},
		{"a head that PEFT saves", "score.modules_to_save.default.weight", "score.weight", "adapter of its own"},
		{"fused behind a prefix", "language_model." + l + "self_attn.qkv_proj.weight", l + "self_attn.k_proj.weight", "in one"},
		{"fused elsewhere in the layer", l + "attention.wqkv.weight", l + "self_attn.q_proj.weight", "in one"},
		{"Baichuan", l + "self_attn.W_pack.weight", l + "self_attn.v_proj.weight", "in one"},
		{"torch.nn.MultiheadAttention", l + "self_attn.in_proj_weight", l + "self_attn.v_proj.weight", "in one"},
		{"keys and values", l + "attn.kv_proj.weight", l + "attn.v_proj.weight", "in one"},
		{"diffusers", "blocks.0.attn.to_q.weight", "blocks.0.attn.to_qkv.weight", "apart; the adapter has"},
		{"gates of experts", "layers.0.ffn.w1.weight", "layers.0.ffn.w13.weight", "apart; the adapter has"},
		{"mixers and gates", l + "linear_attn.in_proj_qkv.weight", l + "linear_attn.in_proj_qkvz.weight", "apart; the adapter has"},
		{"names of llama.cpp", "blk.0.attn_q.weight", l + "self_attn.q_proj.weight", "of llama.cpp"},
		{"names of a first release", "layers.0.attention.wq.weight", l + "self_attn.q_proj.weight", "first release"},
		{"fewer layers", l + "q_proj.weight", "model.layers.7.q_proj.weight", "the last layer of the base is number 0"},
		{"an adapter of kohya", "lora_unet_q.lora_down.weight", l + "q_proj.weight", "the base is an adapter"},
		{"an adapter of PEFT", "base_model.model.x.lora_A.weight", l + "q_proj.weight", "the base is an adapter"},
		{"an adapter of MLX", "x.lora_a", l + "q_proj.weight", "the base is an adapter"},
		{"fewer experts", l + "mlp.experts.0.up_proj.weight", l + "mlp.experts.64.up_proj.weight", "the base has experts up to number 0"},
		{"Mixtral's names", l + "mlp.w1.weight", l + "mlp.gate_proj.weight", `it has "w1" there`},
		{"Megatron's names", l + "mlp.up_proj.weight", l + "mlp.dense_h_to_4h.weight", `no "dense_h_to_4h" in "layers.0.mlp"`},
		{"a router of another name", l + "mlp.gate.weight", l + "mlp.router.weight", `it has "gate" there`},
		{"a layer that lacks a module", l + "q_proj.weight", l + "o_proj.weight", ""},
		{"another model", l + "attn.c_proj.weight", l + "self_attn.k_proj.weight", ""},
	} {
		d, ok := Index([]string{c.base, "other.weight"}).Diagnose([]string{c.wanted})
		if ok != (c.words != "") || !strings.Contains(d.Why, c.words) || ok && d.Hint == "" {
			t.Errorf("%s: Diagnose(%q) in a base with %q = %+v, %v, want %q", c.name, c.wanted, c.base, d, ok, c.words)
		}
	}
}

// TestHolder: a weight that cannot be read is the reason why a tensor is missing, also under
// another prefix, or if it is fused or stacked.
func TestHolder(t *testing.T) {
	const l = "model.layers.0."
	for _, c := range []struct {
		name, weight, wanted string
		holds                bool
	}{
		{"the same", l + "q_proj.weight", l + "q_proj.weight", true},
		{"behind a prefix", "language_model." + l + "q_proj.weight", l + "q_proj.weight", true},
		{"without a prefix", "layers.0.q_proj.weight", l + "q_proj.weight", true},
		{"a head", "lm_head.weight", "lm_head.weight", true},
		{"stacked experts", l + "mlp.experts.down_proj", l + "mlp.experts.down_proj", true},
		{"experts one by one", l + "mlp.experts.down_proj", l + "mlp.experts.down_projs.3.weight", true},
		{"experts stacked there", l + "mlp.experts.0.gate_proj.weight", l + "mlp.experts.gate_up_proj", true},
		{"fused", l + "self_attn.qkv_proj.weight", l + "self_attn.k_proj.weight", true},
		{"another layer", "model.layers.1.q_proj.weight", l + "q_proj.weight", false},
		{"another module", l + "q_proj.weight", l + "o_proj.weight", false},
	} {
		want := ""
		if c.holds {
			want = c.weight
		}
		if got := Holder([]string{"other.weight", c.wanted}, []string{c.weight, "x.weight"}); got != want {
			t.Errorf("%s: Holder(%q, %q) = %q, want %q", c.name, c.wanted, c.weight, got, want)
		}
	}
}

// TestMatchGoesOneSegmentDeeper: a segment after the first one is added or removed where that alone
// makes all names fit.
func TestMatchGoesOneSegmentDeeper(t *testing.T) {
	const l0 = "model.layers.0."
	const deep, flat = "model.text_model.layers.0.q.weight", "model.layers.0.q.weight"
	for _, c := range []struct {
		base         []string
		wanted, want string
	}{
		{[]string{deep, "model.vision_model.encoder.layers.0.q.weight"}, flat, deep},
		{[]string{flat}, deep, flat},
		{[]string{deep, "model.vision_model.layers.0.q.weight"}, flat, ""},
		{[]string{flat}, "module.base_model.model." + flat, flat},
		{[]string{flat}, "model.base_model.model." + flat, flat},
		{[]string{flat}, "policy.base_model.model." + flat, flat},
		{[]string{"language_model." + flat, "vision.layers.0.q.weight"}, "language_model.base_model.model." + flat, "language_model." + flat},
		{[]string{"base_model.model." + flat}, flat, "base_model.model." + flat},
		{[]string{"model.text_model." + flat}, flat, "model.text_model." + flat},
		{[]string{"model.text_model." + flat, "model.text_model.other." + flat}, flat, "model.text_model." + flat},
		{[]string{flat}, "model..layers.0.q.weight", flat},
		{[]string{"lm_head.weight"}, "model.unembed_tokens.weight", "lm_head.weight"},
		{[]string{l0 + "mlp.experts.0.gate_proj.weight"}, l0 + "mlp.experts.0.w1.weight", l0 + "mlp.experts.0.gate_proj.weight"},
		{[]string{l0 + "mlp.experts.0.w2.weight"}, l0 + "mlp.experts.0.down_proj.weight", l0 + "mlp.experts.0.w2.weight"},
		{[]string{l0 + "block_sparse_moe.experts.0.w3.weight"}, l0 + "mlp.experts.0.up_proj.weight", l0 + "block_sparse_moe.experts.0.w3.weight"},
		// The wrong half of a model may be the nearer one.
		{[]string{"model.text_model." + flat, "model.vision_tower.layers.0.q.weight"}, flat, ""},
		{[]string{flat}, "model.vision_tower.layers.0.q.weight", ""},
	} {
		m, _, _ := Index(c.base).Match([]string{c.wanted})
		if got, _ := m.Lookup(c.wanted); c.want != "" && got != c.want {
			t.Errorf("Match(%q) in %q = %q, want %q", c.wanted, c.base, got, c.want)
		}
		if _, missing, ambiguous := Index(c.base).Match([]string{c.wanted}); (missing == nil && ambiguous == nil) != (c.want != "") {
			t.Errorf("Match(%q) in %q: missing %q, ambiguous %q", c.wanted, c.base, missing, ambiguous)
		}
	}
}

// TestAHeadBesideTheTrunkStays: what lacks the prefix that the others lose, or exchange, keeps its
// name.
func TestAHeadBesideTheTrunkStays(t *testing.T) {
	wanted := []string{"lm_head.weight", "model.layers.0.q.weight"}
	m, missing, ambiguous := Index([]string{"lm_head.weight", "model.text_model.layers.0.q.weight"}).Match(wanted)
	if got, _ := m.Lookup("lm_head.weight"); got != "lm_head.weight" || missing != nil || ambiguous != nil {
		t.Errorf("the head pairs with %q; missing %q, ambiguous %q", got, missing, ambiguous)
	}
}

// TestDiagnoseConvolution: shapes tell a convolution in groups from one of another model.
func TestDiagnoseConvolution(t *testing.T) {
	for _, c := range []struct {
		name    string
		w, a, b []uint64
		words   string
	}{
		{"groups", []uint64{16, 4, 3, 3}, []uint64{4, 16, 3, 3}, []uint64{16, 4, 1, 1}, "in 4 groups"},
		{"groups of B as well", []uint64{16, 4, 3, 3}, []uint64{4, 16, 3, 3}, []uint64{16, 1, 1, 1}, "in 4 groups"},
		{"depthwise", []uint64{16, 1, 4}, []uint64{4, 16, 4}, []uint64{16, 4, 1}, "in 16 groups"},
		{"a linear layer", []uint64{16, 8}, []uint64{4, 8, 1, 1}, []uint64{16, 4, 1, 1}, "a linear layer in the base"},
		{"another kernel", []uint64{16, 8, 3, 3}, []uint64{4, 8, 5, 5}, []uint64{16, 4, 1, 1}, "of kernel [5 5]"},
		{"other channels", []uint64{16, 8, 3, 3}, []uint64{4, 12, 3, 3}, []uint64{16, 4, 1, 1}, ""},
		{"other outputs", []uint64{16, 4, 3, 3}, []uint64{4, 16, 3, 3}, []uint64{8, 4, 1, 1}, ""},
	} {
		d, ok := DiagnoseConvolution("conv", c.w, c.a, c.b)
		if ok != (c.words != "") || !strings.Contains(d.Why, c.words) {
			t.Errorf("%s: DiagnoseConvolution(%d, %d, %d) = %+v, %v, want %q", c.name, c.w, c.a, c.b, d, ok, c.words)
		}
	}
}

// TestOneHeadDoesNotHideThePrefix: names that pair are paired, whatever the others are.
func TestOneHeadDoesNotHideThePrefix(t *testing.T) {
	_, missing, _ := Index([]string{"h.0.attn.c_attn.weight", "wte.weight"}).Match([]string{"score.weight", "transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"})
	if len(missing) != 1 || missing[0] != "score.weight" {
		t.Errorf("missing = %q, want the head alone", missing)
	}
}

func TestDiagnoseTellsAnAdapterOfAnUnknownDialect(t *testing.T) {
	d, ok := Index([]string{"lora_te_q.a1.weight", "lora_te_q.a2.weight"}).Diagnose([]string{"layers.0.q.weight"})
	if want := "the base is an adapter"; !ok || !strings.Contains(d.Why, want) {
		t.Errorf("Diagnose = %+v, %v, want %q", d, ok, want)
	}
}
