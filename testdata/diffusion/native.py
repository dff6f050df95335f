"""The names that single-file checkpoints use, as rules on the names of diffusers.

A rule is (pattern, native name) or (pattern, native name, place). Patterns match a whole module
name, and # stands for a number. Modules with one native name and places 0, 1, 2 are the rows of
one native tensor, one below the other. The place "swap" exchanges the halves of the rows, and
"transpose" the dimensions.
"""

import re

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

UNET = [
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
]


def unet_name(module: str):
    """LDM's and SGM's name: both number the layers of all levels in one row."""
    for pattern, native in UNET:
        if module == pattern:
            return native, 0
    kind, *rest = module.split(".")
    if kind == "mid_block":
        layers, index, *rest = rest
        block = f"middle_block.{1 if layers == 'attentions' else 2 * int(index)}"
    else:
        level, layers, index, *rest = rest
        level, index = int(level), int(index)
        if kind == "down_blocks":
            if layers == "downsamplers":
                return f"input_blocks.{3 + 3 * level}.0.op", 0
            block = f"input_blocks.{1 + 3 * level + index}.{int(layers == 'attentions')}"
        elif layers == "upsamplers":
            return f"output_blocks.{3 * level + 2}.UPSAMPLER.conv", 0
        else:
            block = f"output_blocks.{3 * level + index}.{int(layers == 'attentions')}"
    if layers == "resnets":
        rest = [RESNET[rest[0]]]
    return ".".join([block, *rest]), 0


def unet_names(modules):
    """The upsampler follows the attention, where its block has one."""
    names = {module: unet_name(module) for module in modules}
    blocks = {native.rsplit(".UPSAMPLER")[0] for native, _ in names.values()}
    attentive = {
        block for block in blocks if any(n.startswith(block + ".1.") for n, _ in names.values())
    }
    for module, (native, place) in names.items():
        block = native.rsplit(".UPSAMPLER")[0]
        names[module] = native.replace("UPSAMPLER", "2" if block in attentive else "1"), place
    return names


FLUX = [
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("transformer_blocks.#.norm1.linear", "double_blocks.#.img_mod.lin"),
    ("transformer_blocks.#.norm1_context.linear", "double_blocks.#.txt_mod.lin"),
    ("transformer_blocks.#.attn.to_q", "double_blocks.#.img_attn.qkv", 0),
    ("transformer_blocks.#.attn.to_k", "double_blocks.#.img_attn.qkv", 1),
    ("transformer_blocks.#.attn.to_v", "double_blocks.#.img_attn.qkv", 2),
    ("transformer_blocks.#.attn.add_q_proj", "double_blocks.#.txt_attn.qkv", 0),
    ("transformer_blocks.#.attn.add_k_proj", "double_blocks.#.txt_attn.qkv", 1),
    ("transformer_blocks.#.attn.add_v_proj", "double_blocks.#.txt_attn.qkv", 2),
    ("transformer_blocks.#.attn.to_out.0", "double_blocks.#.img_attn.proj"),
    ("transformer_blocks.#.attn.to_add_out", "double_blocks.#.txt_attn.proj"),
    ("transformer_blocks.#.attn.norm_q", "double_blocks.#.img_attn.norm.query_norm"),
    ("transformer_blocks.#.attn.norm_k", "double_blocks.#.img_attn.norm.key_norm"),
    ("transformer_blocks.#.attn.norm_added_q", "double_blocks.#.txt_attn.norm.query_norm"),
    ("transformer_blocks.#.attn.norm_added_k", "double_blocks.#.txt_attn.norm.key_norm"),
    ("transformer_blocks.#.ff.net.0.proj", "double_blocks.#.img_mlp.0"),
    ("transformer_blocks.#.ff.net.2", "double_blocks.#.img_mlp.2"),
    ("transformer_blocks.#.ff_context.net.0.proj", "double_blocks.#.txt_mlp.0"),
    ("transformer_blocks.#.ff_context.net.2", "double_blocks.#.txt_mlp.2"),
    ("single_transformer_blocks.#.norm.linear", "single_blocks.#.modulation.lin"),
    ("single_transformer_blocks.#.attn.to_q", "single_blocks.#.linear1", 0),
    ("single_transformer_blocks.#.attn.to_k", "single_blocks.#.linear1", 1),
    ("single_transformer_blocks.#.attn.to_v", "single_blocks.#.linear1", 2),
    ("single_transformer_blocks.#.proj_mlp", "single_blocks.#.linear1", 3),
    ("single_transformer_blocks.#.proj_out", "single_blocks.#.linear2"),
    ("single_transformer_blocks.#.attn.norm_q", "single_blocks.#.norm.query_norm"),
    ("single_transformer_blocks.#.attn.norm_k", "single_blocks.#.norm.key_norm"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", "swap"),
    ("proj_out", "final_layer.linear"),
]

OPEN_CLIP = [
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.encoder.layers.#.layer_norm1", "transformer.resblocks.#.ln_1"),
    ("text_model.encoder.layers.#.layer_norm2", "transformer.resblocks.#.ln_2"),
    ("text_model.encoder.layers.#.self_attn.q_proj", "transformer.resblocks.#.attn.in_proj", 0),
    ("text_model.encoder.layers.#.self_attn.k_proj", "transformer.resblocks.#.attn.in_proj", 1),
    ("text_model.encoder.layers.#.self_attn.v_proj", "transformer.resblocks.#.attn.in_proj", 2),
    ("text_model.encoder.layers.#.self_attn.out_proj", "transformer.resblocks.#.attn.out_proj"),
    ("text_model.encoder.layers.#.mlp.fc1", "transformer.resblocks.#.mlp.c_fc"),
    ("text_model.encoder.layers.#.mlp.fc2", "transformer.resblocks.#.mlp.c_proj"),
    ("text_model.final_layer_norm", "ln_final"),
]

SD3 = [
    ("pos_embed.proj", "x_embedder.proj"),
    ("context_embedder", "context_embedder"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("transformer_blocks.#.norm1.linear", "joint_blocks.#.x_block.adaLN_modulation.1"),
    # The tiny model has two blocks, and the last one differs.
    (
        "transformer_blocks.0.norm1_context.linear",
        "joint_blocks.0.context_block.adaLN_modulation.1",
    ),
    (
        "transformer_blocks.1.norm1_context.linear",
        "joint_blocks.1.context_block.adaLN_modulation.1",
        "swap",
    ),
    ("transformer_blocks.#.attn.to_q", "joint_blocks.#.x_block.attn.qkv", 0),
    ("transformer_blocks.#.attn.to_k", "joint_blocks.#.x_block.attn.qkv", 1),
    ("transformer_blocks.#.attn.to_v", "joint_blocks.#.x_block.attn.qkv", 2),
    ("transformer_blocks.#.attn.add_q_proj", "joint_blocks.#.context_block.attn.qkv", 0),
    ("transformer_blocks.#.attn.add_k_proj", "joint_blocks.#.context_block.attn.qkv", 1),
    ("transformer_blocks.#.attn.add_v_proj", "joint_blocks.#.context_block.attn.qkv", 2),
    ("transformer_blocks.#.attn2.to_q", "joint_blocks.#.x_block.attn2.qkv", 0),
    ("transformer_blocks.#.attn2.to_k", "joint_blocks.#.x_block.attn2.qkv", 1),
    ("transformer_blocks.#.attn2.to_v", "joint_blocks.#.x_block.attn2.qkv", 2),
    ("transformer_blocks.#.attn.to_out.0", "joint_blocks.#.x_block.attn.proj"),
    ("transformer_blocks.#.attn2.to_out.0", "joint_blocks.#.x_block.attn2.proj"),
    ("transformer_blocks.#.attn.to_add_out", "joint_blocks.#.context_block.attn.proj"),
    ("transformer_blocks.#.attn.norm_q", "joint_blocks.#.x_block.attn.ln_q"),
    ("transformer_blocks.#.attn.norm_k", "joint_blocks.#.x_block.attn.ln_k"),
    ("transformer_blocks.#.attn2.norm_q", "joint_blocks.#.x_block.attn2.ln_q"),
    ("transformer_blocks.#.attn2.norm_k", "joint_blocks.#.x_block.attn2.ln_k"),
    ("transformer_blocks.#.attn.norm_added_q", "joint_blocks.#.context_block.attn.ln_q"),
    ("transformer_blocks.#.attn.norm_added_k", "joint_blocks.#.context_block.attn.ln_k"),
    ("transformer_blocks.#.ff.net.0.proj", "joint_blocks.#.x_block.mlp.fc1"),
    ("transformer_blocks.#.ff.net.2", "joint_blocks.#.x_block.mlp.fc2"),
    ("transformer_blocks.#.ff_context.net.0.proj", "joint_blocks.#.context_block.mlp.fc1"),
    ("transformer_blocks.#.ff_context.net.2", "joint_blocks.#.context_block.mlp.fc2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", "swap"),
    ("proj_out", "final_layer.linear"),
]

WAN = [
    ("patch_embedding", "patch_embedding"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    *(
        (f"blocks.#.attn{number}.{ours}", f"blocks.#.{kind}_attn.{native}")
        for number, kind in ((1, "self"), (2, "cross"))
        for ours, native in (
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "o"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
            ("add_k_proj", "k_img"),
            ("add_v_proj", "v_img"),
            ("norm_added_k", "norm_k_img"),
        )
    ),
    ("blocks.#.norm2", "blocks.#.norm3"),
    ("blocks.#.ffn.net.0.proj", "blocks.#.ffn.0"),
    ("blocks.#.ffn.net.2", "blocks.#.ffn.2"),
    ("proj_out", "head.head"),
]

HUNYUAN = [
    ("x_embedder.proj", "img_in.proj"),
    ("context_embedder.proj_in", "txt_in.input_embedder"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2"),
    ("context_embedder.time_text_embed.text_embedder.linear_1", "txt_in.c_embedder.linear_1"),
    ("context_embedder.time_text_embed.text_embedder.linear_2", "txt_in.c_embedder.linear_2"),
    *(
        (
            f"context_embedder.token_refiner.refiner_blocks.#.{ours}",
            f"txt_in.individual_token_refiner.blocks.#.{native}",
            *place,
        )
        for ours, native, *place in (
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("attn.to_q", "self_attn_qkv", 0),
            ("attn.to_k", "self_attn_qkv", 1),
            ("attn.to_v", "self_attn_qkv", 2),
            ("attn.to_out.0", "self_attn_proj"),
            ("ff.net.0.proj", "mlp.fc1"),
            ("ff.net.2", "mlp.fc2"),
            ("norm_out.linear", "adaLN_modulation.1"),
        )
    ),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    *(
        (f"transformer_blocks.#.{ours}", f"double_blocks.#.{native}", *place)
        for ours, native, *place in (
            ("norm1.linear", "img_mod.linear"),
            ("norm1_context.linear", "txt_mod.linear"),
            ("attn.to_q", "img_attn_qkv", 0),
            ("attn.to_k", "img_attn_qkv", 1),
            ("attn.to_v", "img_attn_qkv", 2),
            ("attn.add_q_proj", "txt_attn_qkv", 0),
            ("attn.add_k_proj", "txt_attn_qkv", 1),
            ("attn.add_v_proj", "txt_attn_qkv", 2),
            ("attn.to_out.0", "img_attn_proj"),
            ("attn.to_add_out", "txt_attn_proj"),
            ("attn.norm_q", "img_attn_q_norm"),
            ("attn.norm_k", "img_attn_k_norm"),
            ("attn.norm_added_q", "txt_attn_q_norm"),
            ("attn.norm_added_k", "txt_attn_k_norm"),
            ("ff.net.0.proj", "img_mlp.fc1"),
            ("ff.net.2", "img_mlp.fc2"),
            ("ff_context.net.0.proj", "txt_mlp.fc1"),
            ("ff_context.net.2", "txt_mlp.fc2"),
        )
    ),
    *(
        (f"single_transformer_blocks.#.{ours}", f"single_blocks.#.{native}", *place)
        for ours, native, *place in (
            ("norm.linear", "modulation.linear"),
            ("attn.to_q", "linear1", 0),
            ("attn.to_k", "linear1", 1),
            ("attn.to_v", "linear1", 2),
            ("proj_mlp", "linear1", 3),
            ("proj_out", "linear2"),
            ("attn.norm_q", "q_norm"),
            ("attn.norm_k", "k_norm"),
        )
    ),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", "swap"),
    ("proj_out", "final_layer.linear"),
]

Z_IMAGE = [
    ("all_x_embedder.2-1", "x_embedder"),
    ("all_final_layer.2-1.linear", "final_layer.linear"),
    ("all_final_layer.2-1.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
    *(
        (f"{kind}.#.attention.{ours}", f"{kind}.#.attention.{native}", *place)
        for kind in ("layers", "noise_refiner", "context_refiner")
        for ours, native, *place in (
            ("to_q", "qkv", 0),
            ("to_k", "qkv", 1),
            ("to_v", "qkv", 2),
            ("to_out.0", "out"),
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
        )
    ),
]

RULES = {
    "flux": FLUX,
    "open_clip": OPEN_CLIP,
    "sd3": SD3,
    "wan": WAN,
    "hunyuan_video": HUNYUAN,
    "z_image": Z_IMAGE,
}

# Tensors that are no weight or bias of a module in one of the two namespaces.
TENSORS = {
    "open_clip": [
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_projection.weight", "text_projection", "transpose"),
    ],
    "sd3": [("pos_embed.pos_embed", "pos_embed")],
    "wan": [
        ("scale_shift_table", "head.modulation"),
        ("blocks.#.scale_shift_table", "blocks.#.modulation"),
    ],
}


def module_names(layout: str, modules) -> dict:
    """The native name and the place of each module of diffusers."""
    if layout == "unet":
        return unet_names(modules)
    if layout == "same":
        return {module: (module, 0) for module in modules}
    named = {module: rule_name(RULES[layout], module) for module in modules}
    if layout == "z_image":  # all other names are the same
        named = {module: name or (module, 0) for module, name in named.items()}
    assert all(named.values()), [module for module, name in named.items() if not name]
    return named


def rule_name(rules, module: str):
    for pattern, native, *place in rules:
        if match := re.fullmatch(re.escape(pattern).replace(r"\#", r"(\d+)"), module):
            for number in match.groups():
                native = native.replace("#", number, 1)
            return native, place[0] if place else 0
    return None


def parameter(layout: str, native: str, kind: str) -> str:
    """Norms of Flux call their weight scale, and in_proj of OpenCLIP has no dot behind it."""
    if native.endswith("in_proj"):
        return f"{native}_{kind}"
    if layout == "flux" and re.search(r"(query|key)_norm$", native):
        kind = "scale"
    return f"{native}.{kind}"


class Names:
    """Both names of every tensor of a denoiser."""

    def __init__(self, layout: str, state: dict):
        self.shapes = {name: tensor.shape for name, tensor in state.items()}
        own = {name: rule_name(TENSORS.get(layout, []), name) for name in state}
        split = {name: name.rpartition(".")[::2] for name in state if not own[name]}
        self.modules = module_names(layout, dict.fromkeys(module for module, _ in split.values()))
        self.parts = {}  # of each native tensor: (place, name of diffusers)
        for name in state:
            if own[name]:
                native, place = own[name]
            else:
                module, kind = split[name]
                native, place = self.modules[module]
                native = parameter(layout, native, kind) if module else name
            self.parts.setdefault(native, []).append((place, name))
        for parts in self.parts.values():
            parts.sort(key=lambda part: str(part[0]))

    def parts_of(self, native: str) -> list:
        """The places and modules of diffusers of a native module."""
        return [
            (place, name.removesuffix(".weight")) for place, name in self.parts[f"{native}.weight"]
        ]

    def to_native(self, state: dict) -> dict:
        native = {}
        for name, parts in self.parts.items():
            native[name] = turn(torch.cat([state[part] for _, part in parts]), parts[0][0])
        return native

    def from_native(self, native: dict) -> dict:
        state = {}
        for name, parts in self.parts.items():
            rows = turn(native[name], parts[0][0])
            pieces = rows.split([self.shapes[part][0] for _, part in parts])
            state.update({part: piece.contiguous() for (_, part), piece in zip(parts, pieces)})
        return state


def turn(rows, place):
    """Exchanges halves or dimensions, where the place says so; twice gives the first again."""
    if place == "swap":
        return torch.cat(rows.chunk(2)[::-1])
    return rows.T.contiguous() if place == "transpose" else rows
