"""The models of the truth: a class of transformers, its configuration, and an input for each, all tiny."""

import torch
import transformers as tf

TEXT = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=40, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
BERT = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40,
    max_position_embeddings=12, pad_token_id=0,
)
IMAGE = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
)
CLIP_TEXT = dict(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=10, eos_token_id=39,
)
SEQ2SEQ = dict(
    d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=32, decoder_ffn_dim=32,
)
ROPE = dict(rope_parameters={"type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]})
EXPERTS = dict(num_experts=3, num_experts_per_tok=1, moe_intermediate_size=6)
LOCAL = dict(num_local_experts=3, num_experts_per_tok=1)

# class → (configuration, its fields)
MODELS = {
    "LlamaForCausalLM": ("LlamaConfig", TEXT),
    "LlamaModel": ("LlamaConfig", TEXT),
    "MistralForCausalLM": ("MistralConfig", TEXT),
    "MixtralForCausalLM": ("MixtralConfig", TEXT | LOCAL),
    "Qwen2ForCausalLM": ("Qwen2Config", TEXT | dict(tie_word_embeddings=True)),
    "Qwen3ForCausalLM": ("Qwen3Config", TEXT),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", TEXT | EXPERTS | dict(shared_expert_intermediate_size=10)),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", TEXT | EXPERTS),
    "Qwen3_5ForCausalLM": ("Qwen3_5TextConfig", TEXT | dict(
        num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
        linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)),
    "GptOssForCausalLM": ("GptOssConfig", TEXT | LOCAL | dict(layer_types=["full_attention"])),
    "GemmaForCausalLM": ("GemmaConfig", TEXT),
    "Gemma2ForCausalLM": ("Gemma2Config", TEXT),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", TEXT),
    "PhiForCausalLM": ("PhiConfig", TEXT),
    "Phi3ForCausalLM": ("Phi3Config", TEXT),
    "PhimoeForCausalLM": ("PhimoeConfig", TEXT | LOCAL),
    "GPT2LMHeadModel": ("GPT2Config", dict(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=12)),
    "GPTNeoForCausalLM": ("GPTNeoConfig", dict(
        hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]], vocab_size=40,
        max_position_embeddings=12)),
    "GPTJForCausalLM": ("GPTJConfig", dict(n_embd=16, n_layer=1, n_head=2, rotary_dim=4, vocab_size=40, n_positions=12)),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", BERT),
    "OPTForCausalLM": ("OPTConfig", dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, vocab_size=40,
        max_position_embeddings=12, word_embed_proj_dim=12)),
    "BloomForCausalLM": ("BloomConfig", dict(hidden_size=16, n_layer=1, n_head=2, vocab_size=40)),
    "FalconForCausalLM": ("FalconConfig", dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)),
    "MptForCausalLM": ("MptConfig", dict(d_model=16, n_layers=1, n_heads=2, vocab_size=40, max_seq_len=16)),
    "CohereForCausalLM": ("CohereConfig", TEXT),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", TEXT | LOCAL),
    "OlmoeForCausalLM": ("OlmoeConfig", TEXT | EXPERTS),
    "DeepseekV3ForCausalLM": ("DeepseekV3Config", dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=40, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=1, moe_intermediate_size=6,
        n_group=2, topk_group=1, q_lora_rank=6, kv_lora_rank=6, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8)),
    "MambaForCausalLM": ("MambaConfig", dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)),
    "Mamba2ForCausalLM": ("Mamba2Config", dict(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=1)),
    "Lfm2ForCausalLM": ("Lfm2Config", TEXT | dict(
        num_hidden_layers=2, layer_types=["conv", "full_attention"], block_ff_dim=32, block_multiple_of=8)),
    "BertForMaskedLM": ("BertConfig", BERT),
    "BertModel": ("BertConfig", BERT),
    "RobertaForMaskedLM": ("RobertaConfig", BERT),
    "XLMRobertaForSequenceClassification": ("XLMRobertaConfig", BERT),
    "DistilBertForMaskedLM": ("DistilBertConfig", dict(
        dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=40, max_position_embeddings=12)),
    "DebertaV2ForMaskedLM": ("DebertaV2Config", BERT | dict(
        relative_attention=True, position_buckets=4, pos_att_type=["p2c", "c2p"])),
    "ElectraForMaskedLM": ("ElectraConfig", BERT | dict(embedding_size=12)),
    "AlbertForMaskedLM": ("AlbertConfig", BERT | dict(embedding_size=12)),
    "T5ForConditionalGeneration": ("T5Config", dict(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40, decoder_start_token_id=0)),
    "BartForConditionalGeneration": ("BartConfig", SEQ2SEQ | dict(
        vocab_size=40, max_position_embeddings=12, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=2)),
    "WhisperForConditionalGeneration": ("WhisperConfig", SEQ2SEQ | dict(
        vocab_size=60, num_mel_bins=8, max_source_positions=10, max_target_positions=12, pad_token_id=1,
        bos_token_id=2, eos_token_id=3, decoder_start_token_id=2)),
    "CLIPTextModel": ("CLIPTextConfig", CLIP_TEXT),
    "CLIPModel": ("CLIPConfig", dict(text_config=CLIP_TEXT, vision_config=IMAGE, projection_dim=12)),
    "SiglipModel": ("SiglipConfig", dict(text_config=CLIP_TEXT, vision_config=IMAGE)),
    "ViTForImageClassification": ("ViTConfig", IMAGE),
    "ViTModel": ("ViTConfig", IMAGE),
    "Dinov2Model": ("Dinov2Config", IMAGE),
    "SwinModel": ("SwinConfig", dict(
        image_size=8, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)),
    "SegformerForImageClassification": ("SegformerConfig", dict(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3],
        strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16)),
    "Wav2Vec2ForCTC": ("Wav2Vec2Config", dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=12,
        conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)),
    "ResNetModel": ("ResNetConfig", dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "RegNetModel": ("RegNetConfig", dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4)),
    "ConvNextModel": ("ConvNextConfig", dict(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=16, patch_size=4)),
    "Qwen3NextForCausalLM": ("Qwen3NextConfig", TEXT | EXPERTS | dict(
        layer_types=["full_attention"], shared_expert_intermediate_size=10)),
    "Qwen3_5MoeForCausalLM": ("Qwen3_5MoeTextConfig", TEXT | EXPERTS | dict(
        layer_types=["full_attention"], shared_expert_intermediate_size=10)),
    "Glm4MoeForCausalLM": ("Glm4MoeConfig", TEXT | dict(
        n_routed_experts=4, num_experts_per_tok=1, moe_intermediate_size=6, first_k_dense_replace=0, n_group=1,
        topk_group=1)),
    "MiniMaxForCausalLM": ("MiniMaxConfig", TEXT | LOCAL | dict(layer_types=["full_attention"])),
    "FalconMambaForCausalLM": ("FalconMambaConfig", dict(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)),
    "MBartForConditionalGeneration": ("MBartConfig", SEQ2SEQ | dict(vocab_size=40, max_position_embeddings=12)),
    "DeiTModel": ("DeiTConfig", IMAGE),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", IMAGE),
    "Gemma3ForConditionalGeneration": ("Gemma3Config", dict(
        text_config=TEXT | dict(model_type="gemma3_text"), vision_config=IMAGE | dict(model_type="siglip_vision_model"),
        mm_tokens_per_image=4, image_token_index=35, boi_token_index=36, eoi_token_index=37)),
    "PaliGemmaForConditionalGeneration": ("PaliGemmaConfig", dict(
        text_config=TEXT | dict(model_type="gemma"), vision_config=IMAGE | dict(model_type="siglip_vision_model"),
        projection_dim=16, image_token_index=35)),
    "Qwen2_5_VLForConditionalGeneration": ("Qwen2_5_VLConfig", dict(text_config=TEXT | ROPE, vision_config=dict(
        depth=1, hidden_size=16, num_heads=2, patch_size=4, intermediate_size=24, out_hidden_size=16,
        fullatt_block_indexes=[0]))),
    "Qwen3VLMoeForConditionalGeneration": ("Qwen3VLMoeConfig", dict(
        text_config=TEXT | EXPERTS | ROPE, vision_config=dict(
            depth=1, hidden_size=16, num_heads=2, patch_size=4, intermediate_size=24, out_hidden_size=16,
            num_position_embeddings=16, deepstack_visual_indexes=[0]))),
    "LlavaForConditionalGeneration": ("LlavaConfig", dict(
        text_config=TEXT | dict(model_type="llama"),
        vision_config=IMAGE | dict(model_type="clip_vision_model", projection_dim=12), image_token_index=5)),
}


def make(name: str) -> torch.nn.Module:
    """A model with seeded weights, in float64 so that comparisons are sharp."""
    config, fields = MODELS[name]
    torch.manual_seed(11)
    model = getattr(tf, name)(getattr(tf, config)(**fields)).double().eval()
    model.config._experts_implementation = "eager"  # the others do not know float64
    with torch.no_grad():  # zeros and ones would hide what is dropped
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def inputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What the forward pass takes."""
    ids = torch.tensor([[3, 7, 11, 5, 9, 4]])
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    match model.config.model_type:
        case "vit" | "deit" | "dinov2" | "dinov2_with_registers" | "swin":
            return {"pixel_values": image}
        case "resnet" | "regnet" | "convnext":
            return {"pixel_values": torch.randn(
                1, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)}
        case "segformer":
            return {"pixel_values": torch.cat([torch.cat([image, image], 2)] * 2, 3)}
        case "clip" | "siglip":
            return {"input_ids": ids, "pixel_values": image}
        case "wav2vec2":
            return {"input_values": image.reshape(1, -1)[:, :64]}
        case "whisper":
            features = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
            return {"input_features": features, "decoder_input_ids": ids}
        case "t5" | "bart" | "mbart":
            return {"input_ids": ids, "decoder_input_ids": ids}
        case "llava":
            return {"input_ids": torch.tensor([[3, 5, 5, 5, 5, 4]]), "pixel_values": image}
    return {"input_ids": ids}


def forward(model: torch.nn.Module) -> list[torch.Tensor]:
    """All results of a forward pass."""
    with torch.no_grad():
        out = model(**inputs(model))
    return [v for v in out.to_tuple() if isinstance(v, torch.Tensor) and v.is_floating_point()]
