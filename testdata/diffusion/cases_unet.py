"""Cases on U-Nets: Stable Diffusion 1 and XL."""

from dataclasses import replace
from functools import partial

import saved
from adapters import (
    COMFY,
    COMPONENTS,
    DOWN_UP,
    KOHYA_XL,
    as_native,
    cloneofsimo,
    dotted,
    kohya,
    old_diffusers,
    split_fused,
    with_dimensions,
)
from case import BF16, F16, Adapter, Case, layers, on_alpha, on_rank

SD_SCRIPTS = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "ss_network_alpha": "2",
    "ss_base_model_version": "sd_v1",
}
ATTENTION = r"unet/.*\.attn\d\.to_(q|k|v|out\.0)"
FEW = r"unet/mid_block.*\.attn\d\.to_(q|k|v|out\.0)"
CLIP = r"text_encoder/.*(_proj|fc\d)"
FOUR = r"unet/(down_blocks\.1|mid_block|up_blocks\.2)\..*\.attn\d\.to_(q|k|v|out\.0)"


def four_grammars(name, write, comment, native=False, by_diffusers=True):
    """The same factors, whatever the grammar: they depend on the group's name."""

    def make(base, case):
        made = layers(FOUR, rank=on_rank)(base, "sd1-four")
        return as_native(base, made) if native else made

    return Case(
        f"sd1-four-{name}",
        "sd1",
        [Adapter(make, write)],
        comment,
        by_diffusers=by_diffusers,
        group="sd1-four",
    )


SD1 = [
    Case(
        "sd1-kohya-all",
        "sd1",
        [
            Adapter(
                layers(r"(unet|text_encoder)/.*", rank=on_rank, alpha=on_alpha, dtype=F16),
                kohya,
                SD_SCRIPTS,
            )
        ],
        "every linear layer and convolution; rank and alpha differ by module; "
        "diffusers confuses the alphas of the text encoder",
        by_diffusers=False,
    ),
    Case(
        "sd1-kohya-no-alpha",
        "sd1",
        [Adapter(layers(FEW, rank=on_rank), kohya)],
        "no alpha: alpha is the rank",
    ),
    Case(
        "sd1-kohya-alpha-1d",
        "sd1",
        [Adapter(layers(FEW, rank=2, alpha=1.0, dtype=BF16), partial(kohya, alpha_shape=(1,)))],
        "alpha tensors of shape [1]",
    ),
    Case(
        "sd1-kohya-alpha-some",
        "sd1",
        [Adapter(layers(FEW, rank=4, alpha=lambda n: (None, 2.0, 0.0)[n % 3]), kohya)],
        "alpha missing, 2 and 0; sd-scripts' merge takes 0 as no effect; "
        "diffusers takes the most frequent alpha where one is missing",
        by_diffusers=False,
    ),
    Case(
        "sd1-kohya-conv",
        "sd1",
        [
            Adapter(
                layers(
                    r"unet/(down_blocks\.1|up_blocks\.1)\..*(\.conv\d?|conv_shortcut|proj_(in|out))"
                    r"|unet/conv_(in|out)",
                    rank=2,
                    alpha=1.0,
                ),
                kohya,
            )
        ],
        "convolutions 3x3 and 1x1, and the first and the last one",
    ),
    Case(
        "sd1-kohya-matrices",
        "sd1",
        [
            Adapter(
                lambda base, case: with_dimensions(
                    layers(r"unet/mid_block.*proj_(in|out)", rank=2)(base, case), 2
                ),
                kohya,
            )
        ],
        "factors of a linear layer, on convolutions of kernel 1",
        by_diffusers=False,
    ),
    Case(
        "sd1-cloneofsimo",
        "sd1",
        [
            Adapter(
                layers(r"text_encoder/.*self_attn\..*", rank=2),
                cloneofsimo,
                {"text_encoder": '["CLIPAttention"]'}
                | {f"text_encoder:{i}:rank": "2" for i in range(8)},
            )
        ],
        "cloneofsimo's lora: the text encoder's layers by number",
        by_diffusers=False,
    ),
    Case(
        "sd1-kohya-te",
        "sd1",
        [Adapter(layers(CLIP, rank=4, alpha=2.0, dtype=F16), kohya, SD_SCRIPTS)],
        "the text encoder alone",
    ),
    Case(
        "sd1-diffusers",
        "sd1",
        [
            Adapter(
                None,
                None,
                save=partial(
                    saved.save,
                    metadata=True,
                    configs={
                        "unet": dict(
                            r=4,
                            lora_alpha=2,
                            target_modules=r"mid_block.*\.(to_q|to_k|to_v|to_out\.0|conv1)",
                            rank_pattern={"attn2.to_k": 2},
                            alpha_pattern={"attn1.to_v": 8},
                        ),
                        "text_encoder": dict(
                            r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "fc1"]
                        ),
                    },
                ),
            )
        ],
        "saved by diffusers with lora_adapter_metadata: patterns of rank and alpha, and rsLoRA",
    ),
    Case(
        "sd1-diffusers-no-metadata",
        "sd1",
        [
            Adapter(
                None,
                None,
                save=partial(
                    saved.save,
                    metadata=False,
                    configs={
                        "unet": dict(
                            r=4,
                            lora_alpha=4,
                            target_modules=["to_q", "ff.net.0.proj", "proj_in", "conv2"],
                            rank_pattern={"to_q": 2},
                            alpha_pattern={"to_q": 2},
                        ),
                        "text_encoder": dict(
                            r=2, lora_alpha=2, target_modules=["v_proj", "out_proj"]
                        ),
                    },
                ),
            )
        ],
        "saved by diffusers without metadata: two ranks, and alpha is the rank of each module",
    ),
    Case(
        "sd1-diffusers-processor",
        "sd1",
        [Adapter(layers(f"{FEW}|{CLIP}", rank=2), old_diffusers)],
        "diffusers of 2023: attention processors, and .lora_linear_layer in the text encoder",
    ),
    Case(
        "sd1-diffusers-layer",
        "sd1",
        [
            Adapter(
                layers(rf"{FEW}|unet/mid_block.*(proj_in|net\.2)", rank=2),
                partial(old_diffusers, processors=False),
            )
        ],
        "diffusers of late 2023: .lora.down on every kind of layer",
    ),
    Case(
        "sd1-diffusers-bare",
        "sd1",
        [Adapter(layers(FEW, rank=2), partial(old_diffusers, prefixes={"unet": ""}))],
        "diffusers of early 2023: processors, and no component in front; "
        "diffusers now loads nothing of it",
        on={"sd1/unet": None, "sd1": None},
        by_diffusers=False,
    ),
    Case(
        "sd1-comfy",
        "sd1",
        [
            Adapter(
                layers(
                    r"unet/\w+\.([48]|1[01])\..*"
                    r"(to_q|emb_layers\.1|in_layers\.2|skip_connection|op|2\.conv)",
                    rank=2,
                    alpha=on_alpha,
                    native=True,
                ),
                partial(dotted, prefixes=COMFY, style=DOWN_UP),
            )
        ],
        "ComfyUI: native names after diffusion_model., with alpha",
        by_diffusers=False,
    ),
    Case(
        "sd1-two",
        "sd1",
        [
            Adapter(layers(FEW, rank=2, alpha=1.0), kohya, file="first.safetensors"),
            Adapter(
                layers(FEW, rank=4), partial(dotted, prefixes=COMPONENTS), file="second.safetensors"
            ),
        ],
        "two adapters of two grammars, with weights",
        weights=[0.5, -1.25],
    ),
    four_grammars("kohya", kohya, "flat names"),
    four_grammars("diffusers", partial(dotted, prefixes=COMPONENTS), "diffusers with PEFT's names"),
    four_grammars("old", old_diffusers, "diffusers of 2023"),
    four_grammars(
        "comfy", partial(dotted, prefixes=COMFY), "ComfyUI", native=True, by_diffusers=False
    ),
]


XL_SOME = (
    r"unet/(input_blocks\.[57]|middle_block|output_blocks\.[26])\..*"
    r"(attn\d\.to_\w+(\.0)?|ff\.net.*|proj_in|proj_out|in_layers\.2|emb_layers\.1"
    r"|skip_connection|conv)"
)
XL_CLIP = r"text_encoder(_2)?/.*(self_attn\.\w+|fc\d)"


def xl_some(base, case):
    return layers(XL_SOME, rank=on_rank, alpha=on_alpha, dtype=F16, native=True)(base, "sdxl-four")


def xl_parts(alpha):
    """The same layers under the names of diffusers; without an alpha, up has the scale."""

    def make(base, case):
        made = split_fused(base, xl_some(base, case))
        return (
            made
            if alpha
            else [replace(layer, up=layer.up * layer.scale, alpha=None) for layer in made]
        )

    return make


def xl_four(name, make, write, comment, by_diffusers=False):
    return Case(
        f"sdxl-four-{name}",
        "sdxl",
        [Adapter(make, write)],
        comment,
        by_diffusers=by_diffusers,
        group="sdxl-four",
    )


def xl_middle(base, case):
    middle = layers(
        r"unet/middle_block\.1\..*attn1.*", rank=on_rank, alpha=on_alpha, dtype=F16, native=True
    )
    return middle(base, case) + layers(XL_CLIP, rank=on_rank, alpha=on_alpha, dtype=F16)(base, case)


SDXL = [
    Case(
        "sdxl-kohya-te",
        "sdxl",
        [Adapter(xl_middle, partial(kohya, prefixes=KOHYA_XL))],
        "the U-Net and both text encoders, the second with OpenCLIP's in_proj in the single file; "
        "diffusers confuses the alphas of the text encoders",
        by_diffusers=False,
    ),
    Case(
        "sdxl-diffusers",
        "sdxl",
        [
            Adapter(
                None,
                None,
                save=partial(
                    saved.save,
                    metadata=True,
                    configs={
                        "unet": dict(
                            r=4,
                            lora_alpha=2,
                            target_modules=r"mid_block.*\.(to_q|to_k|to_out\.0|proj_in)",
                        ),
                        "text_encoder": dict(r=2, lora_alpha=4, target_modules=["v_proj"]),
                        "text_encoder_2": dict(
                            r=4,
                            lora_alpha=4,
                            rank_pattern={"k_proj": 2},
                            target_modules=["k_proj", "out_proj", "fc2"],
                        ),
                    },
                ),
            )
        ],
        "saved by diffusers, with both text encoders: one part of OpenCLIP's in_proj",
    ),
    Case(
        "sdxl-kohya-4d",
        "sdxl",
        [
            Adapter(
                lambda base, case: with_dimensions(
                    layers(r"unet/mid_block.*(proj_(in|out)|attn1\.to_q)", rank=2, alpha=1.0)(
                        base, case
                    ),
                    4,
                ),
                partial(kohya, prefixes=KOHYA_XL),
            )
        ],
        "factors of a convolution, on linear layers",
        by_diffusers=False,
    ),
    xl_four("sgm", xl_some, partial(kohya, prefixes=KOHYA_XL), "flat names of SGM"),
    xl_four(
        "flat",
        xl_parts(alpha=True),
        partial(kohya, prefixes=KOHYA_XL),
        "flat names of diffusers; diffusers loses the alphas of attentions where they differ",
    ),
    xl_four(
        "diffusers",
        xl_parts(alpha=False),
        partial(dotted, prefixes=COMPONENTS),
        "diffusers",
        by_diffusers=True,
    ),
    xl_four("comfy", xl_some, partial(dotted, prefixes=COMFY, style=DOWN_UP), "ComfyUI"),
]
