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
		{"GPTQ", l + "q_proj.qweight", l + "q_proj.weight", "quantised (GPTQ"},
		{"compressed-tensors", l + "q_proj.weight_packed", l + "q_proj.weight", "quantised (compressed-tensors)"},
		{"HQQ", l + "q_proj.W_q", l + "q_proj.weight", "quantised (HQQ)"},
		{"EXL2", l + "q_proj.q_weight", l + "q_proj.weight", "quantised (EXL2)"},
		{"MXFP4", l + "mlp.experts.down_proj_blocks", l + "mlp.experts.down_proj", "quantised (MXFP4)"},
		{"MXFP4, experts one by one", l + "mlp.experts.down_proj_blocks", l + "mlp.experts.down_projs.3.weight", "quantised (MXFP4)"},
		{"experts one by one", l + "mlp.experts.down_proj", l + "mlp.experts.down_projs.3.weight", "stacks its experts"},
		{"a base with PEFT's layers", l + "q_proj.base_layer.weight", l + "q_proj.weight", "adapter of its own"},
		{"a wrapped model", "base_model.model." + l + "q_proj.base_layer.weight", l + "q_proj.weight", "adapter of its own"},
		{"fused", l + "self_attn.qkv_proj.weight", l + "self_attn.k_proj.weight", "in one"},
		{"fused gates", l + "mlp.gate_up_proj.weight", l + "mlp.up_proj.weight", "in one"},
		{"split", l + "self_attn.q_proj.weight", l + "self_attn.qkv_proj.weight", "apart, where"},
		{"split mixers", l + "attn.in_proj_qkv.weight", l + "attn.in_proj_k.weight", "in one"},
		{"another model", l + "attn.c_proj.weight", l + "self_attn.k_proj.weight", ""},
		{"another layer", "model.layers.1.q_proj.qweight", l + "q_proj.weight", ""},
	} {
		d, ok := Index([]string{c.base, "other.weight"}).Diagnose([]string{c.wanted})
		if ok != (c.words != "") || !strings.Contains(d.Why, c.words) || ok && d.Hint == "" {
			t.Errorf("%s: Diagnose(%q) in a base with %q = %+v, %v, want %q", c.name, c.wanted, c.base, d, ok, c.words)
		}
	}
}

// TestMatchGoesOneSegmentDeeper: a segment after the first one is added or removed where that alone makes all names fit.
func TestMatchGoesOneSegmentDeeper(t *testing.T) {
	const deep, flat = "model.text_model.layers.0.q.weight", "model.layers.0.q.weight"
	for _, c := range []struct {
		base         []string
		wanted, want string
	}{
		{[]string{deep, "model.vision_model.encoder.layers.0.q.weight"}, flat, deep},
		{[]string{flat}, deep, flat},
		{[]string{deep, "model.vision_model.layers.0.q.weight"}, flat, ""},
		{[]string{flat}, "module.base_model.model." + flat, flat},
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

// TestOneHeadDoesNotHideThePrefix: names that pair are paired, whatever the others are.
func TestOneHeadDoesNotHideThePrefix(t *testing.T) {
	_, missing, _ := Index([]string{"h.0.attn.c_attn.weight", "wte.weight"}).Match([]string{"score.weight", "transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"})
	if len(missing) != 1 || missing[0] != "score.weight" {
		t.Errorf("missing = %q, want the head alone", missing)
	}
}
