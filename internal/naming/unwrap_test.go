package naming_test

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/naming"
)

func TestLayersOfPEFTInABase(t *testing.T) {
	b := naming.Index([]string{
		"m.q.base_layer.weight", "m.q.base_layer.bias", "m.q.lora_A.speech.weight", "m.k.base_layer.base_layer.weight",
		"m.v.base_layer.weight", "m.v.weight", "m.o.base_layer.weight", "m.o.base_layer.base_layer.weight", "m.attn.base_layer.q.weight",
		"base_layer.weight", "m.norm.weight",
	})
	for name, want := range map[string]string{
		"m.q.weight": "m.q.base_layer.weight", "m.q.bias": "m.q.base_layer.bias", "m.k.weight": "m.k.base_layer.base_layer.weight",
		"m.v.weight": "m.v.weight", "m.o.weight": "", "m.attn.q.weight": "", "weight": "", "m.q.base_layer.weight": "m.q.base_layer.weight",
	} {
		if got := b.Actual(name); got != want {
			t.Errorf("%q stands for %q, want %q", name, got, want)
		}
	}
	if inner, tensors := naming.Wrapped(b, []string{"m.norm.weight", "m.q.weight"}); inner != "m.q.base_layer.weight" || !slices.Equal(tensors, []string{"m.q.lora_A.speech.weight"}) {
		t.Errorf("Wrapped = %q, %q", inner, tensors)
	}
	if inner, tensors := naming.Wrapped(b, []string{"m.norm.weight", "m.v.weight", "m.q.base_layer.weight"}); inner != "" || tensors != nil {
		t.Errorf("Wrapped of plain names = %q, %q; want none", inner, tensors)
	}
}
