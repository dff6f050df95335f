package naming

import "testing"

// TestRoleOf: names of models on the hub, with the roles that their papers give the tensors.
func TestRoleOf(t *testing.T) {
	for name, want := range map[string]string{
		"model.embed_tokens.weight":                                         RoleEmbeddings,
		"transformer.wpe.weight":                                            RoleEmbeddings,
		"bert.embeddings.token_type_embeddings.weight":                      RoleEmbeddings,
		"vision_model.embeddings.patch_embedding.weight":                    RoleEmbeddings,
		"tok_embeddings.weight":                                             RoleEmbeddings,
		"bert.embeddings.LayerNorm.weight":                                  RoleNorms,
		"model.layers.0.post_attention_layernorm.weight":                    RoleNorms,
		"model.layers.0.self_attn.q_norm.weight":                            RoleNorms,
		"transformer.h.0.ln_1.bias":                                         RoleNorms,
		"transformer.ln_f.weight":                                           RoleNorms,
		"layers.0.attention_norm.weight":                                    RoleNorms,
		"model.layers.0.self_attn.q_proj.weight":                            RoleAttention,
		"transformer.h.0.attn.c_proj.weight":                                RoleAttention,
		"bert.encoder.layer.0.attention.output.dense.weight":                RoleAttention,
		"decoder.block.0.layer.1.EncDecAttention.k.weight":                  RoleAttention,
		"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": RoleAttention,
		"model.layers.0.mlp.gate_proj.weight":                               RoleMLP,
		"model.layers.0.block_sparse_moe.experts.0.w1.weight":               RoleMLP,
		"model.layers.0.mlp.experts.gate_up_proj":                           RoleMLP,
		"decoder.block.0.layer.2.DenseReluDense.wi.weight":                  RoleMLP,
		"bert.encoder.layer.0.intermediate.dense.weight":                    RoleMLP,
		"bert.encoder.layer.0.output.dense.weight":                          RoleMLP,
		"layers.0.feed_forward.w1.weight":                                   RoleMLP,
		"model.decoder.layers.0.fc1.weight":                                 RoleMLP,
		"lm_head.weight":                                                    RoleHead,
		"output.weight":                                                     RoleHead,
		"bert.pooler.dense.weight":                                          RoleOther,
		"logit_scale":                                                       RoleOther,
	} {
		if got := RoleOf(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}
