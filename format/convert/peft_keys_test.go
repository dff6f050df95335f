package convert

import "testing"

// TestKeysWithTheNameOfAnAdapterTwice: loading a raw state dict into a PEFT model and saving it
// again writes the adapter's name twice.
func TestKeysWithTheNameOfAnAdapterTwice(t *testing.T) {
	for _, c := range []struct {
		key  string
		want peftKey
	}{
		{"q.lora_A.weight", peftKey{module: "q", role: roleA, adapter: ""}},
		{"q.lora_A.default.weight", peftKey{module: "q", role: roleA, adapter: "default"}},
		{"q.lora_A.default.default.weight", peftKey{module: "q", role: roleA, adapter: "default.default"}},
		{"q.lora_B.default_0.default.weight", peftKey{module: "q", role: roleB, adapter: "default_0.default"}},
		{"q.lora_A.a.b.c.weight", peftKey{module: "q.lora_A.a.b.c.weight", role: roleUnknown, adapter: ""}},
		{"self_attn..q.lora_A.weight", peftKey{module: "self_attn.q", role: roleA, isWrapped: true}},
	} {
		if got := parsePEFTKey("base_model.model." + c.key); got != c.want {
			t.Errorf("parsePEFTKey(%q) = %+v, want %+v", c.key, got, c.want)
		}
	}
}
