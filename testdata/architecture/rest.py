"""The parameters that the tables leave out, native = diffusers, and how diffusers converts."""

from diffusers.loaders import single_file_utils as s

# Norms, tables of shifts and scales, padding tokens and position embeddings: adapters of low rank
# do not change them. A name without "=" is the same on both sides. {} stands for weight and bias.
REST = {
    "unet": """
        out.0.{} = conv_norm_out.{}
        """,
    "unet.resnet": """
        in_layers.0.{} = norm1.{}
        out_layers.0.{} = norm2.{}
        """,
    "unet.transformer": """
        norm.{}
        transformer_blocks.#.norm1.{}
        transformer_blocks.#.norm2.{}
        transformer_blocks.#.norm3.{}
        """,
    "sd3": """
        pos_embed = pos_embed.pos_embed
        """,
    "sd3.joint": """
        x_block.attn.ln_q.weight = attn.norm_q.weight
        x_block.attn.ln_k.weight = attn.norm_k.weight
        x_block.attn2.ln_q.weight = attn2.norm_q.weight
        x_block.attn2.ln_k.weight = attn2.norm_k.weight
        context_block.attn.ln_q.weight = attn.norm_added_q.weight
        context_block.attn.ln_k.weight = attn.norm_added_k.weight
        """,
    "flux": """
        single_blocks.#.norm.query_norm.scale = single_transformer_blocks.#.attn.norm_q.weight
        single_blocks.#.norm.key_norm.scale = single_transformer_blocks.#.attn.norm_k.weight
        """,
    "flux.double": """
        img_attn.norm.query_norm.scale = attn.norm_q.weight
        img_attn.norm.key_norm.scale = attn.norm_k.weight
        txt_attn.norm.query_norm.scale = attn.norm_added_q.weight
        txt_attn.norm.key_norm.scale = attn.norm_added_k.weight
        """,
    "wan": """
        head.modulation = scale_shift_table
        img_emb.proj.0.{} = condition_embedder.image_embedder.norm1.{}
        img_emb.proj.4.{} = condition_embedder.image_embedder.norm2.{}
        """,
    "wan.block": """
        modulation = scale_shift_table
        norm3.{} = norm2.{}
        self_attn.norm_q.weight = attn1.norm_q.weight
        self_attn.norm_k.weight = attn1.norm_k.weight
        cross_attn.norm_q.weight = attn2.norm_q.weight
        cross_attn.norm_k.weight = attn2.norm_k.weight
        cross_attn.norm_k_img.weight = attn2.norm_added_k.weight
        """,
    "qwen_image": """
        txt_norm.weight
        transformer_blocks.#.attn.norm_q.weight
        transformer_blocks.#.attn.norm_k.weight
        transformer_blocks.#.attn.norm_added_q.weight
        transformer_blocks.#.attn.norm_added_k.weight
        """,
    "hunyuan_video": """
        single_blocks.#.q_norm.weight = single_transformer_blocks.#.attn.norm_q.weight
        single_blocks.#.k_norm.weight = single_transformer_blocks.#.attn.norm_k.weight
        """,
    "hunyuan_video.refiner": """
        norm1.{}
        norm2.{}
        """,
    "hunyuan_video.double": """
        img_attn_q_norm.weight = attn.norm_q.weight
        img_attn_k_norm.weight = attn.norm_k.weight
        txt_attn_q_norm.weight = attn.norm_added_q.weight
        txt_attn_k_norm.weight = attn.norm_added_k.weight
        """,
    "z_image": """
        x_pad_token
        cap_pad_token
        cap_embedder.0.weight
        """,
    "z_image.layer": """
        attention.q_norm.weight = attention.norm_q.weight
        attention.k_norm.weight = attention.norm_k.weight
        attention_norm1.weight
        attention_norm2.weight
        ffn_norm1.weight
        ffn_norm2.weight
        """,
    "clip": """
        final_layer_norm.{} = text_model.final_layer_norm.{}
        encoder.layers.#.layer_norm1.{} = text_model.encoder.layers.#.layer_norm1.{}
        encoder.layers.#.layer_norm2.{} = text_model.encoder.layers.#.layer_norm2.{}
        """,
    "open_clip": """
        ln_final.{} = text_model.final_layer_norm.{}
        positional_embedding = text_model.embeddings.position_embedding.weight
        text_projection = text_projection.weight
        transformer.resblocks.#.ln_1.{} = text_model.encoder.layers.#.layer_norm1.{}
        transformer.resblocks.#.ln_2.{} = text_model.encoder.layers.#.layer_norm2.{}
        """,
    "t5": """
        encoder.block.#.layer.0.layer_norm.weight
        encoder.block.#.layer.1.layer_norm.weight
        encoder.final_layer_norm.weight
        """,
}

# The native and the diffusers modules that the lines of a block are below.
BELOW = {
    "hunyuan_video.refiner": [("txt_in.individual_token_refiner.blocks.#",
                               "context_embedder.token_refiner.refiner_blocks.#")],
    "hunyuan_video.double": [("double_blocks.#", "transformer_blocks.#")],
    "flux.double": [("double_blocks.#", "transformer_blocks.#")],
    "sd3.joint": [("joint_blocks.#", "transformer_blocks.#")],
    "wan.block": [("blocks.#", "blocks.#"), ("vace_blocks.#", "vace_blocks.#")],
    "z_image.layer": [(n, n) for n in ("layers.#", "noise_refiner.#", "context_refiner.#")],
}


def read(key):
    for line in REST[key].splitlines():
        if line.strip():
            left, _, right = line.strip().partition(" = ")
            for word in ("weight", "bias") if "{}" in left else ("",):
                yield left.replace("{}", word), (right or left).replace("{}", word)


def rest(table, rows):
    """Returns the pairs of parameters that a table leaves out."""
    pairs = []
    if table in ("sd1", "sdxl"):
        pairs += read("unet")
        for below, mark in (("resnet", ".in_layers.2"), ("transformer", ".proj_in")):
            for r in rows:
                if r.native.endswith(mark):
                    native, other = r.native.removesuffix(mark), r.parts[0][0].rpartition(".")[0]
                    pairs += [(f"{native}.{a}", f"{other}.{b}") for a, b in read("unet." + below)]
        return pairs
    pairs += read(table)
    for key, places in BELOW.items():
        if key.startswith(table + "."):
            for native, other in places:
                pairs += [(f"{native}.{a}", f"{other}.{b}") for a, b in read(key)]
    return pairs


class OpenCLIP:
    """Stands for the model in convert_open_clip_checkpoint, which reads the size if it must."""

    def __init__(self, hidden):
        self.config = type("Config", (), {"hidden_size": hidden})


def unet(state, model):
    state = {s.LDM_UNET_KEY + k: v for k, v in state.items()}
    return s.convert_ldm_unet_checkpoint(state, model.config)


def open_clip(state, model):
    prefix = "conditioner.embedders.1.model."
    state = {prefix + k: v for k, v in state.items()}
    return s.convert_open_clip_checkpoint(OpenCLIP(model.config.hidden_size), state, prefix)


def plain(convert):
    return lambda state, model: convert(state)


# Tables without a converter have one namespace, or two classes that show both (CLIP).
CONVERT = {
    "sd1": unet,
    "sdxl": unet,
    "sd3": plain(s.convert_sd3_transformer_checkpoint_to_diffusers),
    "flux": plain(s.convert_flux_transformer_checkpoint_to_diffusers),
    "wan": plain(s.convert_wan_transformer_to_diffusers),
    "hunyuan_video": plain(s.convert_hunyuan_video_transformer_to_diffusers),
    "z_image": plain(s.convert_z_image_transformer_checkpoint_to_diffusers),
    "open_clip": open_clip,
}
