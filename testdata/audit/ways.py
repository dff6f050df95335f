"""Merges models with PEFT and mlx-lm, and by the formula of sd-scripts."""

import json
import tempfile
import warnings
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from bases import BASES, read_checkpoint
from rounding import BF16, F16, F32


def by_peft(base, adapters, weights=None, dtype=None, saved=None, safe=False, autocast=True, join=False, model=None):
    """merge_and_unload and save_pretrained. dtype is that of the loaded model, saved that of the merged one.

    join adds the adapters to one with add_weighted_adapter(combination_type="cat") before the merge.
    Returns the tensors and config.json as saved.
    """
    kind = BASES[base.name]
    loaded = (model or kind.model).from_pretrained(base, dtype=dtype or kind.dtype)
    peft_model = None
    names = [f"adapter{i}" for i in range(len(adapters))]
    weights = weights or [1.0] * len(adapters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, path in zip(names, adapters):
            if peft_model is None:
                peft_model = peft.PeftModel.from_pretrained(loaded, path, name, autocast_adapter_dtype=autocast)
            else:
                peft_model.load_adapter(path, name, autocast_adapter_dtype=autocast)
    assert not any("missing adapter keys" in str(w.message) for w in caught), adapters
    if join:
        peft_model.add_weighted_adapter(names, weights, "joined", combination_type="cat")
        names = ["joined"]
    else:
        for module in peft_model.modules():
            if isinstance(module, LoraLayer):
                for name, weight in zip(names, weights):
                    if name in module.scaling and weight != 1:
                        module.scaling[name] *= weight
    peft_model.base_model.set_adapter(names)
    merged = peft_model.merge_and_unload(safe_merge=safe)
    if saved:
        merged = merged.to(saved)
    with tempfile.TemporaryDirectory() as directory:
        merged.save_pretrained(directory)
        tensors = read_checkpoint(Path(directory))
        config = json.loads((Path(directory) / "config.json").read_text())
    if tensors.keys() != read_checkpoint(base).keys() and kind.edit:
        kind.edit(tensors, config)
    return tensors, config


def layers_of(adapter: Path) -> dict[str, tuple]:
    """(s, B, A) of a plain LoRA adapter by the name of the weight."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for name, a in tensors.items():
        module, _, tail = name.rpartition(".lora_")
        if tail == "A.weight":
            s = config["lora_alpha"] / (a.shape[0] ** (0.5 if config["use_rslora"] else 1))
            found[module.removeprefix("base_model.model.") + ".weight"] = (s, tensors[f"{module}.lora_B.weight"], a)
    return found


def by_mlx(base, adapter):
    """mlx_lm.tuner.lora.LoRALinear.fuse, with factors in the dtype of their file."""
    import mlx.core as mx
    import numpy as np
    from mlx import nn
    from mlx_lm.tuner.lora import LoRALinear

    kinds = {BF16: mx.bfloat16, F16: mx.float16, F32: mx.float32}
    tensors = read_checkpoint(base)
    for name, (s, b, a) in layers_of(adapter).items():
        w = tensors[name]
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
        kind = kinds[w.dtype]
        linear.weight = mx.array(w.float().numpy()).astype(kind)
        layer = LoRALinear.from_base(linear, r=a.shape[0], scale=s)
        layer.lora_a, layer.lora_b = (mx.array(x.float().T.numpy()).astype(kinds[x.dtype]) for x in (a, b))
        fused = layer.fuse().weight
        assert fused.dtype == kind, fused.dtype
        tensors[name] = torch.from_numpy(np.array(fused.astype(mx.float32))).to(w.dtype)
    return tensors, None


def by_mlx_model(base, adapter):
    """A model and an adapter of ../mlx: load_adapters and fuse, under the names of the base."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    model, _ = load_model(base)
    load_adapters(model, str(adapter))
    model.update_modules(tree_unflatten([(n, m.fuse()) for n, m in model.named_modules() if hasattr(m, "fuse")]))
    tensors = read_checkpoint(base)
    for name, x in tree_flatten(model.parameters()):
        x = torch.from_numpy(np.array(x.astype(mx.float32)))
        module, switch, part = name.partition(".switch_mlp.")
        if not switch:
            tensors[name] = x.to(tensors[name].dtype)
            continue
        for expert in range(len(x)):
            single = f"{module}.experts.{expert}.{part}"
            tensors[single] = x[expert].to(tensors[single].dtype)
    return tensors, None


def by_kohya(base, adapter, merge_dtype, save_dtype=None):
    """networks/flux_merge_lora.py of sd-scripts (48d368fa), merge_to_flux_model, for linear layers:

        weight = weight.to(merge_dtype); up_weight, down_weight, alpha likewise (load_state_dict)
        scale = alpha / dim
        weight = weight + ratio * (up_weight @ down_weight) * scale
        state_dict[module_weight_key] = weight.to(save_dtype)

    save_to_file then converts every tensor to save_dtype.
    """
    tensors = load_file(base) if base.is_file() else read_checkpoint(base)
    ratio = 1.0
    layers = layers_of(adapter) if adapter.is_dir() else layers_by_flat_name(adapter, tensors)
    for name, (s, b, a) in layers.items():
        dim = a.shape[0]
        alpha = torch.tensor(s * dim, dtype=merge_dtype)
        scale = alpha / dim
        weight = tensors[name].to(merge_dtype)
        up, down = b.to(merge_dtype), a.to(merge_dtype)
        tensors[name] = weight + ratio * (up @ down) * scale
    return {name: t.to(save_dtype or merge_dtype) for name, t in tensors.items()}, None


def layers_by_flat_name(adapter: Path, tensors) -> dict[str, tuple]:
    """(s, B, A) of a file of sd-scripts for flux."""
    names = {"lora_unet_" + name.removesuffix(".weight").replace(".", "_"): name for name in tensors}
    lora = load_file(adapter)
    found = {}
    for key, down in lora.items():
        module, _, tail = key.partition(".lora_")
        if tail == "down.weight":
            found[names[module]] = (lora[f"{module}.alpha"].item() / len(down), lora[f"{module}.lora_up.weight"], down)
    return found
