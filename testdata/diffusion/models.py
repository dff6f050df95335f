"""Tiny models of the real classes."""

import diffusers
import transformers


def clip(width=8, layers=2, projection=None):
    config = transformers.CLIPTextConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=6,
        bos_token_id=0,
        eos_token_id=2,
        projection_dim=projection or width,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config)


def t5():
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=8,
            d_model=8,
            d_kv=4,
            d_ff=16,
            num_layers=2,
            num_heads=2,
            relative_attention_num_buckets=4,
            feed_forward_proj="gated-gelu",
        )
    )


def sd1():
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8, 8, 8),
        norm_num_groups=2,
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1)
    return dict(vae=vae, unet=unet, text_encoder=clip())


def flux():
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 0),
    )
    return dict(transformer=transformer, text_encoder=clip(), text_encoder_2=t5())


def sdxl():
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8, 8),
        norm_num_groups=2,
        cross_attention_dim=20,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=24,
    )
    return dict(unet=unet, text_encoder=clip(), text_encoder_2=clip(12, 3, projection=12))


def sd3():
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=4,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return dict(
        transformer=transformer,
        text_encoder=clip(projection=8),
        text_encoder_2=clip(12, 3, projection=12),
        text_encoder_3=t5(),
    )


def wan():
    return dict(
        transformer=diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=6,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=8,
            ffn_dim=16,
            num_layers=2,
            cross_attn_norm=True,
            image_dim=8,
            added_kv_proj_dim=12,
            rope_max_seq_len=8,
        )
    )


def qwen_image():
    return dict(
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=8,
            out_channels=2,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=1,
            joint_attention_dim=8,
            axes_dims_rope=(2, 2, 4),
        )
    )


def hunyuan_video():
    return dict(
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            text_embed_dim=8,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 2, 0),
        )
    )


def z_image():
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=8,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=(2, 2, 0),
        axes_lens=(8, 8, 8),
    )
    # Its sizes are no arguments of the model, and would fill half a megabyte.
    transformer.t_embedder = type(transformer.t_embedder)(
        8, mid_size=12, frequency_embedding_size=6
    )
    return dict(transformer=transformer)
