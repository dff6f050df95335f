"""The classes of diffusers and transformers, with the sizes of the published models."""

import diffusers as d
import transformers as t

SD = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
SD2 = dict(sample_size=96, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
           use_linear_projection=True)
SDXL = dict(
    sample_size=128, cross_attention_dim=2048, attention_head_dim=[5, 10, 20],
    use_linear_projection=True, block_out_channels=[320, 640, 1280],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)
SD35 = dict(sample_size=128, qk_norm="rms_norm")
WAN = dict(num_attention_heads=40, num_layers=40, ffn_dim=13824)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
              num_attention_heads=12, projection_dim=768)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
              num_attention_heads=20, projection_dim=1280, hidden_act="gelu")
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
              num_attention_heads=16, projection_dim=512, hidden_act="gelu")
T5 = dict(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24,
          feed_forward_proj="gated-gelu")


def sd3(layers, heads, dual, **more):
    return lambda: d.SD3Transformer2DModel(
        num_layers=layers, num_attention_heads=heads, caption_projection_dim=64 * heads,
        dual_attention_layers=tuple(range(dual)), **more)


# (table, model, class)
MODELS = [
    ("sd1", "SD 1.5", lambda: d.UNet2DConditionModel(**SD)),
    ("sd1", "SD 2.1", lambda: d.UNet2DConditionModel(**SD2)),
    ("sdxl", "SDXL 1.0", lambda: d.UNet2DConditionModel(**SDXL)),
    ("sd3", "SD 3 medium", sd3(24, 24, 0, sample_size=128, pos_embed_max_size=192)),
    ("sd3", "SD 3.5 medium", sd3(24, 24, 13, pos_embed_max_size=384, **SD35)),
    ("sd3", "SD 3.5 large", sd3(38, 38, 0, pos_embed_max_size=192, **SD35)),
    ("flux", "Flux.1 dev", lambda: d.FluxTransformer2DModel(guidance_embeds=True)),
    ("flux", "Flux.1 schnell", lambda: d.FluxTransformer2DModel()),
    ("wan", "Wan 2.1 T2V 1.3B", lambda: d.WanTransformer3DModel(
        num_attention_heads=12, num_layers=30, ffn_dim=8960)),
    ("wan", "Wan 2.1 and 2.2 T2V 14B", lambda: d.WanTransformer3DModel(**WAN)),
    ("wan", "Wan 2.1 I2V 14B", lambda: d.WanTransformer3DModel(
        in_channels=36, image_dim=1280, added_kv_proj_dim=5120, **WAN)),
    ("wan", "Wan 2.2 I2V 14B", lambda: d.WanTransformer3DModel(in_channels=36, **WAN)),
    ("wan", "Wan 2.2 TI2V 5B", lambda: d.WanTransformer3DModel(
        num_attention_heads=24, num_layers=30, ffn_dim=14336, in_channels=48, out_channels=48)),
    ("wan", "Wan 2.1 VACE 14B", lambda: d.WanVACETransformer3DModel(
        vace_layers=[0, 5, 10, 15, 20, 25, 30, 35], vace_in_channels=96, **WAN)),
    ("qwen_image", "Qwen-Image", lambda: d.QwenImageTransformer2DModel()),
    ("hunyuan_video", "HunyuanVideo", lambda: d.HunyuanVideoTransformer3DModel()),
    ("z_image", "Z-Image", lambda: d.ZImageTransformer2DModel()),
    ("clip", "CLIP-L", lambda: t.CLIPTextModel(t.CLIPTextConfig(**CLIP_L))),
    ("clip", "CLIP-L with projection", lambda: t.CLIPTextModelWithProjection(
        t.CLIPTextConfig(**CLIP_L))),
    ("clip", "CLIP-G", lambda: t.CLIPTextModelWithProjection(t.CLIPTextConfig(**CLIP_G))),
    ("open_clip", "CLIP-G", lambda: t.CLIPTextModelWithProjection(t.CLIPTextConfig(**CLIP_G))),
    ("open_clip", "OpenCLIP-H of SD 2", lambda: t.CLIPTextModelWithProjection(
        t.CLIPTextConfig(**CLIP_H))),
    ("t5", "T5 1.1 XXL", lambda: t.T5EncoderModel(t.T5Config(**T5))),
    ("t5", "UMT5 XXL", lambda: t.UMT5EncoderModel(t.UMT5Config(vocab_size=256384, **T5))),
]
