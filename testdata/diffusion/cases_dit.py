"""Cases on the other transformers: SD 3, Wan, Qwen-Image, HunyuanVideo and Z-Image."""

from functools import partial

from adapters import (
    BARE,
    COMFY,
    COMFY_SD3,
    COMPONENTS,
    DOWN_UP,
    KOHYA_FLUX,
    KOHYA_SD3,
    dotted,
    fuse_blocks,
    kohya,
    split_fused,
)
from case import BF16, Adapter, Case, layers, on_alpha, on_rank

# Every linear layer but the final ones, which have a case of their own where their halves differ.
BODY = (
    r"transformer/(?!.*(pos_embed|patch_embedding|x_embedder|img_in\.proj"
    r"|final_layer|norm_out|proj_out)).*"
)
SD3_LAST = r"transformer/(norm_out\.linear|proj_out|transformer_blocks\.1\.norm1_context\.linear)"
SD3_LAST_NATIVE = (
    r"transformer/(final_layer\..*|joint_blocks\.1\.context_block\.adaLN_modulation\.1)"
)
LAST, LAST_NATIVE = r"transformer/(norm_out\.linear|proj_out)", r"transformer/final_layer\..*"
ENCODERS = r"text_encoder(_2)?/.*(q_proj|v_proj|fc1)|text_encoder_3/.*(SelfAttention\.q|wi_0)"


def whole(pattern, alpha=None):
    def make(base, case):
        return layers(pattern, rank=on_rank, alpha=alpha, dtype=BF16, native=True)(
            base, f"{base.name}-three"
        )

    return make


def three_grammars(base, pattern, native=COMFY, by_diffusers=("diffusers",)):
    """One adapter by flat native names, dotted native names, and the names of diffusers.

    by_diffusers are those that diffusers reads.
    """

    def parts(made, case):
        return split_fused(made, whole(pattern)(made, case))

    spellings = {
        "kohya": (whole(pattern), partial(kohya, prefixes=KOHYA_FLUX), "flat native names"),
        "native": (whole(pattern), partial(dotted, prefixes=native), "dotted native names"),
        "diffusers": (parts, partial(dotted, prefixes=COMPONENTS), "diffusers"),
    }
    return [
        Case(
            f"{base}-three-{name}",
            base,
            [Adapter(make, write)],
            comment,
            by_diffusers=name in by_diffusers,
            group=f"{base}-three",
            on={base: None, f"{base}.safetensors": None},
        )
        for name, (make, write, comment) in spellings.items()
    ]


def one(name, base, make, write, comment, by_diffusers=False):
    return Case(
        name,
        base,
        [Adapter(make, write)],
        comment,
        by_diffusers=by_diffusers,
        on={base: None, f"{base}.safetensors": None},
    )


DIT = [
    *three_grammars("sd3", r"transformer/joint_blocks\.\d\..*(qkv|proj|fc\d)"),
    one(
        "sd3-kohya-te",
        "sd3",
        layers(ENCODERS, rank=on_rank, alpha=on_alpha),
        partial(kohya, prefixes=KOHYA_SD3),
        "three text encoders",
    ),
    one(
        "sd3-comfy",
        "sd3",
        lambda base, case: whole(r"transformer/joint_blocks.*x_block.*(qkv|\.1)", alpha=2.0)(
            base, case
        )
        + layers(ENCODERS, rank=2)(base, case),
        partial(dotted, prefixes=COMFY_SD3, style=DOWN_UP),
        "ComfyUI, text encoders too",
    ),
    one(
        "sd3-last",
        "sd3",
        layers(SD3_LAST, rank=2),
        partial(dotted, prefixes=COMPONENTS),
        "modules whose native tensors have their halves exchanged",
        by_diffusers=True,
    ),
    one(
        "sd3-last-native",
        "sd3",
        layers(SD3_LAST_NATIVE, rank=2, alpha=1.0, native=True),
        partial(kohya, prefixes=KOHYA_SD3),
        "the same modules by their native names",
    ),
    *three_grammars("wan", BODY, by_diffusers=("native", "diffusers")),
    one(
        "wan-last",
        "wan",
        layers(r"transformer/proj_out|transformer/blocks\.1\.attn2\..*", rank=2, alpha=1.0),
        partial(dotted, prefixes=COMPONENTS),
        "head.head, and the attention to images, with alpha",
    ),
    *three_grammars("qwen", BODY, by_diffusers=("kohya", "native", "diffusers")),
    one(
        "qwen-bare",
        "qwen",
        layers(r"transformer/.*", rank=on_rank, alpha=on_alpha),
        partial(dotted, prefixes=BARE, style=DOWN_UP),
        "every module, without a component, with alpha",
        by_diffusers=True,
    ),
    *three_grammars("hunyuan", BODY, native=BARE),
    one(
        "hunyuan-last",
        "hunyuan",
        layers(LAST, rank=2),
        partial(dotted, prefixes=COMPONENTS),
        "norm_out.linear: the native tensor has its halves exchanged",
        by_diffusers=True,
    ),
    one(
        "hunyuan-last-native",
        "hunyuan",
        layers(LAST_NATIVE, rank=2, alpha=1.0, native=True),
        partial(kohya, prefixes=KOHYA_FLUX),
        "final_layer: diffusers' tensor has its halves exchanged",
    ),
    *three_grammars("zimage", BODY, by_diffusers=("kohya", "diffusers")),
    one(
        "zimage-blocks",
        "zimage",
        lambda base, case: fuse_blocks(
            base, layers(r"transformer/layers.*to_[qkv]", rank=2, alpha=1.0)(base, case)
        ),
        partial(kohya, prefixes=KOHYA_FLUX),
        "q, k and v as one pair whose up is block-diagonal",
        by_diffusers=True,
    ),
    one(
        "zimage-some",
        "zimage",
        layers(r"transformer/.*(to_k|w2|adaLN_modulation\.\d|linear)", rank=on_rank),
        partial(dotted, prefixes=COMPONENTS),
        "one part of the fused projection, and the final layer",
        by_diffusers=True,
    ),
]
