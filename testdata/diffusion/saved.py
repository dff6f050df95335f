"""Adapters that diffusers itself saves, with layers made by PEFT."""

import peft
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from adapters import Layer, random_factor


def save(base, case: str, path, configs: dict, metadata: bool) -> list[Layer]:
    """Adds PEFT layers to components, fills them, and saves them with save_lora_weights.

    configs are the arguments of each component's LoraConfig. Without metadata, a reader takes
    alpha for the rank, so configs must say the same.
    """
    pipe, layers, saved = base.build(), [], {}
    for component, config in configs.items():
        model = getattr(pipe, component)
        model.add_adapter(LoraConfig(**config), adapter_name="default")
        layers += fill(base, case, component, model)
        saved[f"{component}_lora_layers"] = get_peft_model_state_dict(model)
    if metadata:
        saved |= _collate_lora_metadata(
            {component: getattr(pipe, component) for component in configs}
        )
    type(pipe).save_lora_weights(path.parent, weight_name=path.name, **saved)
    return layers


def fill(base, case, component, model) -> list[Layer]:
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, peft.tuners.lora.LoraLayer):
            continue
        down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
        with torch.no_grad():
            down.copy_(random_factor(f"{case}/{component}/{name}/down", down.shape, down.dtype))
            up.copy_(random_factor(f"{case}/{component}/{name}/up", up.shape, up.dtype))
        alpha = module.scaling["default"] * down.shape[0]
        if base.flat_clip(component) or base.clip_prefix and component == "text_encoder":
            name = f"text_model.{name.removeprefix('text_model.')}"
        layers.append(Layer(component, name, down.detach().clone(), up.detach().clone(), alpha))
    assert layers, (case, component)
    return layers
