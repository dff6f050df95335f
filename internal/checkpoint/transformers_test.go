package checkpoint_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/checkpoint"
)

// TestAsTransformers: names and shapes are those of transformers, also of norms, and LlamaModel's
// permutation of llama.cpp, applied to a tensor of the view, gives the stored one. Reads of any
// length agree.
func TestAsTransformers(t *testing.T) {
	stored := open(t, plainGGUF)
	c, err := checkpoint.AsTransformers(stored)
	if err != nil {
		t.Fatal(err)
	}
	checkNames(t, c, "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.down_proj.weight",
		"model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.post_attention_layernorm.weight",
		"model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_proj.weight",
		"model.layers.0.self_attn.v_proj.weight", "model.norm.weight")
	read := func(c *checkpoint.Checkpoint, name string, step int64) []byte {
		ref, ok := c.Lookup(name)
		if !ok {
			t.Fatal(name)
		}
		p := make([]byte, ref.Tensor.NBytes)
		for off := int64(0); off < int64(len(p)); off += step {
			if err := ref.Tensor.ReadAt(t.Context(), p[off:min(off+step, int64(len(p)))], off); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	for module, x := range map[string]struct {
		tensor string
		heads  int
	}{"q": {"blk.0.attn_q.weight", 4}, "k": {"blk.0.attn_k.weight", 2}} {
		name := "model.layers.0.self_attn." + module + "_proj.weight"
		got, want := read(c, name, 1<<20), read(stored, x.tensor, 1<<20)
		const size, row = 8, 64 // rows of a head; bytes of a row
		var permuted []byte
		for h := range x.heads {
			for i := range size / 2 {
				for half := range 2 {
					r := h*size + half*size/2 + i
					permuted = append(permuted, got[r*row:][:row]...)
				}
			}
		}
		if !bytes.Equal(permuted, want) || bytes.Equal(got, want) {
			t.Errorf("%s has other rows", name)
		}
		if other := read(c, name, 37); !bytes.Equal(other, got) {
			t.Errorf("%s reads otherwise in pieces", name)
		}
	}
	moe := open(t, "../../testdata/gguf/bases/mixtral/base.gguf")
	if c, err = checkpoint.AsTransformers(moe); err != nil {
		t.Fatal(err)
	}
	ref, ok := c.Lookup("model.layers.0.block_sparse_moe.experts.2.w2.weight")
	if !ok || !slices.Equal(ref.Tensor.Shape, []uint64{32, 24}) {
		t.Fatalf("names %q", c.Names())
	}
	stack := read(moe, "blk.0.ffn_down_exps.weight", 1<<20)
	if !bytes.Equal(read(c, ref.Tensor.Name, 1<<20), stack[len(stack)/3*2:]) {
		t.Error("the last expert is another one")
	}
}
