"""Adapters: random factors for modules of a base, and the spellings of the tools that save them."""

import hashlib
import re
from dataclasses import dataclass, replace

import torch

# Factors are few multiples of GRAIN: small integers over 64.
GRAIN = 2.0**-6


@dataclass(frozen=True)
class Layer:
    """The factors of one module.

    module is the name in the component: of diffusers and transformers (CLIP's with text_model.),
    or, if native, of single files. alpha is None where the file does not say it.
    """

    component: str
    module: str
    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None
    native: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The rule of kohya and of diffusers: alpha over rank, and 1 without an alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def delta(self) -> torch.Tensor:
        down, up = self.down.double(), self.up.double()
        rows = up.flatten(1) @ down.flatten(1)
        return self.scale * rows.reshape(up.shape[0], *down.shape[1:])

    @property
    def flat(self) -> str:
        return self.module.replace(".", "_")


def random_factor(name: str, shape, dtype):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
    values = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed))
    return (values * GRAIN).to(dtype)


def random_layers(
    base, case: str, pattern: str, rank=2, alpha=None, dtype=torch.float32, native=False
):
    """Layers for the modules whose component/name matches the pattern.

    rank and alpha are a number, or a function of the module's number.
    """
    layers = []
    for component, module, shape in base.linear_modules(native):
        if not re.fullmatch(pattern, f"{component}/{module}"):
            continue
        value = lambda what: what(len(layers)) if callable(what) else what  # noqa: E731
        r = value(rank)
        name = f"{case}/{component}/{module}"
        down = random_factor(name + "/down", (r, *shape[1:]), dtype)
        up = random_factor(name + "/up", (shape[0], r, *(1 for _ in shape[2:])), dtype)
        layers.append(Layer(component, module, down, up, value(alpha), native))
    assert layers, (case, pattern)
    return layers


def as_native(base, layers):
    """The same layers under native names, for modules that stay whole."""
    modules = base.names().modules
    return [replace(layer, module=modules[layer.module][0], native=True) for layer in layers]


def split_fused(base, layers):
    """The same change under the names of diffusers: parts share down, and divide the rows of up."""
    names, split = base.names(), []
    for layer in layers:
        if not layer.native:
            split.append(layer)
            continue
        parts = names.parts_of(layer.module)
        assert parts[0][0] != "swap"
        ups = layer.up.split([names.shapes[f"{module}.weight"][0] for _, module in parts])
        for (_, module), up in zip(parts, ups):
            split.append(replace(layer, module=module, up=up.contiguous(), native=False))
    return split


def fuse_blocks(base, layers):
    """Layers of diffusers' parts as one of the fused module, with up in diagonal blocks."""
    names, fused = base.names(), {}
    for layer in layers:
        fused.setdefault(names.modules[layer.module][0], []).append(layer)
    result = []
    for module, parts in fused.items():
        parts.sort(key=lambda part: names.modules[part.module][1])
        assert len(parts) == len(names.parts_of(module))
        alpha = parts[0].alpha and parts[0].alpha * len(parts)
        down, up = torch.cat([part.down for part in parts]), torch.block_diag(
            *(part.up for part in parts)
        )
        result.append(Layer(parts[0].component, module, down, up, alpha, native=True))
    return result


KOHYA = {"unet": "lora_unet_", "transformer": "lora_unet_", "text_encoder": "lora_te_"}
KOHYA_XL = KOHYA | {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
KOHYA_FLUX = KOHYA | {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"}
KOHYA_SD3 = KOHYA_XL | {"text_encoder_3": "lora_te3_"}
ONETRAINER_FLUX = KOHYA_FLUX | {"text_encoder_2": "lora_te2_"}
ONETRAINER_LEGACY = KOHYA_FLUX | {"transformer": "lora_transformer_"}


def kohya(layers, prefixes=KOHYA, alpha_shape=(), dotted=False) -> dict:
    """sd-scripts: flat names, lora_down and lora_up, and a tensor for alpha."""
    tensors = {}
    for layer in layers:
        name = prefixes[layer.component] + (layer.module if dotted else layer.flat)
        tensors[f"{name}.lora_down.weight"] = layer.down
        tensors[f"{name}.lora_up.weight"] = layer.up
        if layer.alpha is not None:
            tensors[f"{name}.alpha"] = torch.full(alpha_shape, layer.alpha, dtype=layer.up.dtype)
    return tensors


PEFT_STYLE = ("lora_A.weight", "lora_B.weight")
DOWN_UP = ("lora_down.weight", "lora_up.weight")


def dotted(layers, prefixes, style=PEFT_STYLE) -> dict:
    """Dotted names: diffusers' components, ComfyUI's diffusion_model., or none."""
    tensors = {}
    for layer in layers:
        name = prefixes[layer.component] + layer.module
        tensors[f"{name}.{style[0]}"] = layer.down
        tensors[f"{name}.{style[1]}"] = layer.up
        if layer.alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=layer.up.dtype)
    return tensors


COMPONENTS = {
    name: name + "."
    for name in ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
}
COMFY = {
    "unet": "diffusion_model.",
    "transformer": "diffusion_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}
COMFY_SD3 = COMFY | {
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
PEFT = {"unet": "base_model.model.", "transformer": "base_model.model."}
BARE = {"unet": "", "transformer": ""}


def old_diffusers(layers, prefixes=COMPONENTS, processors=True) -> dict:
    """diffusers of 2023: attention processors, then LoRA layers; lora_linear_layer in CLIP."""
    tensors = {}
    for layer in layers:
        attention, _, projection = layer.module.rpartition(".attn")
        if layer.component.startswith("text_encoder"):
            stem = f"{layer.module}.lora_linear_layer"
        elif projection and processors:
            number, _, projection = projection.partition(".")
            stem = f"{attention}.attn{number}.processor.{projection.removesuffix('.0')}_lora"
        else:
            stem = f"{layer.module}.lora"
        tensors[f"{prefixes[layer.component]}{stem}.down.weight"] = layer.down
        tensors[f"{prefixes[layer.component]}{stem}.up.weight"] = layer.up
        assert layer.alpha is None
    return tensors


def xlabs(layers) -> dict:
    """XLabs: the processors of Flux's attentions; 1 is the image's, 2 the text's."""
    tensors = {}
    for layer in layers:
        block, stream, kind = re.fullmatch(
            r"(double_blocks\.\d+)\.(img|txt)_attn\.(qkv|proj)", layer.module
        ).groups()
        stem = f"{block}.processor.{kind}_lora{1 if stream == 'img' else 2}"
        tensors[f"{stem}.down.weight"], tensors[f"{stem}.up.weight"] = layer.down, layer.up
    return tensors


def cloneofsimo(layers) -> dict:
    """The first tool for Stable Diffusion: numbers in the order of the layers in the model."""
    tensors = {}
    for number, layer in enumerate(layers):
        tensors[f"{layer.component}:{number}:up"] = layer.up
        tensors[f"{layer.component}:{number}:down"] = layer.down
    return tensors


def with_dimensions(layers, dimensions: int):
    """The same factors as matrices, or with two dimensions of 1 behind, as a convolution's."""

    def shaped(t):
        return t.reshape(*t.flatten(1).shape, *[1] * (dimensions - 2))

    return [replace(layer, down=shaped(layer.down), up=shaped(layer.up)) for layer in layers]
