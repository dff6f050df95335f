"""The names that single-file checkpoints use, as rules on the names of diffusers.

A rule is (pattern, native name) or (pattern, native name, place). Patterns match a whole module
name, and # stands for a number. Modules with one native name and places 0, 1, 2 are the rows of
one native tensor, one below the other. The place "swap" exchanges the halves of the rows.
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
    attentive = {block for block in blocks if any(n.startswith(block + ".1.") for n, _ in names.values())}
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

RULES = {"flux": FLUX}


def module_names(layout: str, modules) -> dict:
    """The native name and the place of each module of diffusers."""
    if layout == "unet":
        return unet_names(modules)
    if layout == "same":
        return {module: (module, 0) for module in modules}
    return {module: rule_name(RULES[layout], module) for module in modules}


def rule_name(rules, module: str):
    for pattern, native, *place in rules:
        if match := re.fullmatch(re.escape(pattern).replace(r"\#", r"(\d+)"), module):
            for number in match.groups():
                native = native.replace("#", number, 1)
            return native, place[0] if place else 0
    raise KeyError(module)


def parameter(layout: str, native: str, kind: str) -> str:
    """Norms of Flux call their weight scale."""
    if layout == "flux" and re.search(r"(query|key)_norm$", native):
        kind = "scale"
    return f"{native}.{kind}"


class Names:
    """Both names of every tensor of a denoiser."""

    def __init__(self, layout: str, state: dict):
        self.shapes = {name: tensor.shape for name, tensor in state.items()}
        split = {name: name.rpartition(".")[::2] for name in state}
        self.modules = module_names(layout, dict.fromkeys(module for module, _ in split.values()))
        self.parts = {}  # of each native tensor: (place, name of diffusers)
        for name, (module, kind) in split.items():
            native, place = self.modules[module]
            self.parts.setdefault(parameter(layout, native, kind), []).append((place, name))
        for parts in self.parts.values():
            parts.sort(key=lambda part: str(part[0]))

    def parts_of(self, native: str) -> list:
        """The places and modules of diffusers of a native module."""
        return [(place, name.removesuffix(".weight")) for place, name in self.parts[f"{native}.weight"]]

    def to_native(self, state: dict) -> dict:
        native = {}
        for name, parts in self.parts.items():
            rows = torch.cat([state[part] for _, part in parts])
            native[name] = swap_halves(rows) if parts[0][0] == "swap" else rows
        return native

    def from_native(self, native: dict) -> dict:
        state = {}
        for name, parts in self.parts.items():
            rows = swap_halves(native[name]) if parts[0][0] == "swap" else native[name]
            pieces = rows.split([self.shapes[part][0] for _, part in parts])
            state.update({part: piece.contiguous() for (_, part), piece in zip(parts, pieces)})
        return state


def swap_halves(rows):
    return torch.cat(rows.chunk(2)[::-1])
