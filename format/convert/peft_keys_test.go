package convert

import "testing"

// TestKeysWithTheNameOfAnAdapterTwice: loading a raw state dict into a PEFT model and saving it
// again writes the adapter's name twice.
func TestKeysWithTheNameOfAnAdapterTwice(t *testing.T) {
	for _, c := range []struct {
		key  string
		want peftKey
	}{
		{"q.lora_A.weight", peftKey{"q", roleA, ""}},
		{"q.lora_A.default.weight", peftKey{"q", roleA, "default"}},
		{"q.lora_A.default.default.weight", peftKey{"q", roleA, "default.default"}},
		{"q.lora_B.default_0.default.weight", peftKey{"q", roleB, "default_0.default"}},
		{"q.lora_A.a.b.c.weight", peftKey{"q.lora_A.a.b.c.weight", roleUnknown, ""}},
		{"self_attn..q.lora_A.weight", peftKey{"self_attn.q", roleA, ""}},
	} {
		if got := parsePEFTKey("base_model.model." + c.key); got != c.want {
			t.Errorf("parsePEFTKey(%q) = %+v, want %+v", c.key, got, c.want)
		}
	}
}
