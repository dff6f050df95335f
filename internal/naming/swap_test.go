package naming_test

import (
	"testing"

	"github.com/loratool/loratool/internal/naming"
)

func TestSwapFindsTheOnlyReplacement(t *testing.T) {
	const q, k = "layers.0.attn.q.weight", "layers.1.attn.k.weight"
	for _, c := range []struct {
		name     string
		base     []string
		wanted   []string
		from, to string
		ok       bool
	}{
		{"one", []string{"model." + q, "model." + k, "head.weight"}, []string{"decoder." + q, "decoder." + k}, "decoder.", "model.", true},
		{"deeper", []string{"a.b." + q, "a.b." + k}, []string{"x.y.z." + q, "x.y.z." + k}, "x.y.z.", "a.b.", true},
		{"the longest", []string{"model." + q, "model.layers.7.attn.q.weight"}, []string{"x." + q}, "x.", "model.", true},
		{"two", []string{"a." + q, "b." + q}, []string{"x." + q}, "", "", false},
		{"not all", []string{"a." + q, "b." + k}, []string{"x." + q, "x." + k}, "", "", false},
		{"none", []string{"a.weight"}, []string{"x." + q}, "", "", false},
		{"an empty adapter", []string{"a.weight"}, nil, "", "", false},
	} {
		from, to, ok := naming.Swap(naming.Index(c.base), c.wanted)
		if ok != c.ok || ok && (from != c.from || to != c.to) {
			t.Errorf("%s: Swap(%q) = %q, %q, %v; want %q, %q, %v", c.name, c.wanted, from, to, ok, c.from, c.to, c.ok)
		}
	}
}

func TestFront(t *testing.T) {
	for module, want := range map[string]string{
		"model.layers.3.q": "model.layers", "layers.0": "layers", "lm_head": "lm_head", "score.dense": "score", "0.weight": "0",
	} {
		if got := naming.Front(module); got != want {
			t.Errorf("Front(%q) = %q, want %q", module, got, want)
		}
	}
}
