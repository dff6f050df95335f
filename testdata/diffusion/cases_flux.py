"""Cases on Flux.1, whose native names fuse q, k and v."""

from dataclasses import replace
from functools import partial

import saved
from adapters import (
    BARE,
    COMFY,
    COMPONENTS,
    DOWN_UP,
    KOHYA_FLUX,
    ONETRAINER_FLUX,
    ONETRAINER_LEGACY,
    PEFT,
    dotted,
    fuse_blocks,
    kohya,
    split_fused,
    xlabs,
)
from case import BF16, F16, Adapter, Case, layers, on_alpha, on_rank

DIRECTORY, COMFY_FILE, BFL_FILE = "flux", "flux.safetensors", "flux-bfl.safetensors"
TRANSFORMER_ONLY = {DIRECTORY: None, COMFY_FILE: None, BFL_FILE: None}
WITH_ENCODERS = {DIRECTORY: None, COMFY_FILE: None, BFL_FILE: "transformer"}
SPLIT = (
    r"transformer/(transformer_blocks.*(to_q|to_k|to_v|add_\w_proj)"
    r"|single_transformer.*(to_\w|proj_mlp))"
)
SOME = r"transformer/(double_blocks\.\d\.(img|txt)_(attn|mlp)\..*|single_blocks\.\d\.linear\d)"
ENCODERS = r"text_encoder/.*(q_proj|fc1)|text_encoder_2/.*(SelfAttention\.q|wi_0)"


def with_encoders(base, case):
    denoiser = layers(r".*", rank=on_rank, alpha=on_alpha, dtype=BF16, native=True)(base, case)
    return denoiser + layers(ENCODERS, rank=2, alpha=1.0, dtype=BF16)(base, case)


def split_by_blocks(base, case):
    """Each part has its own rank-2 layer; the file holds the fused one."""
    return fuse_blocks(base, layers(SPLIT, rank=2, alpha=1.0)(base, case))


def whole(base, case):
    return layers(SOME, rank=on_rank, native=True)(base, "flux-four")


def parts(base, case):
    return split_fused(base, whole(base, case))


def by_peft(name, scale, options, comment):
    """PEFT's keys, which do not say the scale."""

    def make(base, case):
        made = layers(SPLIT, rank=4)(base, case)
        return [replace(layer, alpha=4.0 * scale) for layer in made]

    def write(made):
        return dotted([replace(layer, alpha=None) for layer in made], PEFT)

    return Case(
        f"flux-peft-{name}",
        "flux",
        [Adapter(make, write)],
        comment,
        on={DIRECTORY: None, BFL_FILE: None},
        by_diffusers=False,
        options=options,
    )


def four_grammars(name, make, write, comment, by_diffusers=True):
    """The same factors, whatever the grammar: they depend on the group's name."""
    return Case(
        f"flux-four-{name}",
        "flux",
        [Adapter(make, write)],
        comment,
        on=TRANSFORMER_ONLY,
        by_diffusers=by_diffusers,
        group="flux-four",
    )


FLUX = [
    Case(
        "flux-kohya-all",
        "flux",
        [
            Adapter(
                with_encoders,
                partial(kohya, prefixes=KOHYA_FLUX),
                {"ss_network_module": "networks.lora_flux"},
            )
        ],
        "every module of the transformer, CLIP as te1, T5 as te3",
        on=WITH_ENCODERS,
        by_diffusers=False,
    ),
    Case(
        "flux-onetrainer-t5",
        "flux",
        [
            Adapter(
                lambda base, case: layers(ENCODERS, rank=2, alpha=1.0)(base, case)
                + layers(r"transformer/double_blocks.*_mod\.lin", rank=2, alpha=1.0, native=True)(
                    base, case
                ),
                partial(kohya, prefixes=ONETRAINER_FLUX),
            )
        ],
        "T5 as te2, as OneTrainer wrote it",
        on=WITH_ENCODERS,
        by_diffusers=False,
    ),
    Case(
        "flux-kohya-blocks",
        "flux",
        [Adapter(split_by_blocks, partial(kohya, prefixes=KOHYA_FLUX))],
        "split q, k, v and mlp, exported as one pair whose up is block-diagonal",
        by_diffusers=False,
    ),
    Case(
        "flux-diffusers",
        "flux",
        [
            Adapter(
                None,
                None,
                save=partial(
                    saved.save,
                    metadata=True,
                    configs={
                        "transformer": dict(
                            r=4,
                            lora_alpha=2,
                            rank_pattern={"to_k": 2},
                            alpha_pattern={"add_v_proj": 8},
                            target_modules=[
                                "to_q",
                                "to_k",
                                "add_v_proj",
                                "proj_mlp",
                                "to_out.0",
                                "norm.linear",
                                "x_embedder",
                            ],
                        ),
                        "text_encoder": dict(
                            r=2, lora_alpha=4, target_modules=["q_proj", "k_proj"]
                        ),
                    },
                ),
            )
        ],
        "saved by diffusers: some parts of the fused tensors, with their own ranks and alphas",
        on=WITH_ENCODERS,
    ),
    Case(
        "flux-diffusers-no-metadata",
        "flux",
        [
            Adapter(
                layers(rf"{SPLIT}|transformer/.*(ff\.net.*|to_add_out)", rank=on_rank),
                partial(dotted, prefixes=COMPONENTS),
            )
        ],
        "diffusers' names without alpha, with ranks that differ among the parts of a fused tensor",
    ),
    Case(
        "flux-final-layer",
        "flux",
        [
            Adapter(
                layers(r"transformer/(norm_out\.linear|proj_out)", rank=2),
                partial(dotted, prefixes=COMPONENTS),
            )
        ],
        "norm_out.linear: the native tensor has its halves exchanged",
    ),
    Case(
        "flux-final-layer-native",
        "flux",
        [
            Adapter(
                layers(r"transformer/final_layer\..*", rank=2, alpha=1.0, native=True),
                partial(kohya, prefixes=KOHYA_FLUX),
            )
        ],
        "final_layer.adaLN_modulation.1: diffusers' tensor has its halves exchanged",
        by_diffusers=False,
    ),
    Case(
        "flux-bare",
        "flux",
        [Adapter(layers(SOME, rank=2, native=True, dtype=BF16), partial(dotted, prefixes=BARE))],
        "bare native names with PEFT's suffixes",
        by_diffusers=False,
    ),
    Case(
        "flux-comfy",
        "flux",
        [Adapter(with_encoders, partial(dotted, prefixes=COMFY, style=DOWN_UP))],
        "ComfyUI's names, text encoders too",
        on=WITH_ENCODERS,
        by_diffusers=False,
    ),
    Case(
        "flux-xlabs",
        "flux",
        [
            Adapter(
                layers(
                    r"transformer/double_blocks\.\d\.(img|txt)_attn\.(qkv|proj)",
                    rank=2,
                    native=True,
                ),
                xlabs,
            )
        ],
        "XLabs: processors of the double blocks",
    ),
    Case(
        "flux-onetrainer-legacy",
        "flux",
        [
            Adapter(
                layers(
                    rf"{SPLIT}|transformer/.*(ff\.net.*|to_add_out)",
                    rank=on_rank,
                    alpha=on_alpha,
                    dtype=F16,
                ),
                partial(kohya, prefixes=ONETRAINER_LEGACY),
            )
        ],
        "OneTrainer's first: lora_transformer_ before diffusers' names, flat",
        by_diffusers=False,
    ),
    by_peft("alpha", 0.5, {"alpha": 2.0}, "PEFT's keys, and the user gives alpha"),
    by_peft("scale", 2.0, {"scale": 2.0}, "PEFT's keys, and the user gives the scale"),
    four_grammars(
        "kohya", whole, partial(kohya, prefixes=KOHYA_FLUX), "flat native names", by_diffusers=False
    ),
    four_grammars("comfy", whole, partial(dotted, prefixes=COMFY), "ComfyUI", by_diffusers=False),
    four_grammars(
        "diffusers",
        parts,
        partial(dotted, prefixes=COMPONENTS),
        "diffusers, with the fused modules in parts",
    ),
    four_grammars(
        "legacy",
        parts,
        partial(kohya, prefixes=ONETRAINER_LEGACY),
        "flat names of diffusers",
        by_diffusers=False,
    ),
]
