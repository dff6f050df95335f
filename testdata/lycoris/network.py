"""A small model, adapters of LyCORIS for it, and the weights that LyCORIS' forward gives."""

import hashlib
import json
import os
from contextlib import redirect_stderr, redirect_stdout

import lycoris
import lycoris.config
import lycoris.kohya
import torch
from lycoris.modules.full import FullModule
from lycoris.modules.norms import NormModule
from lycoris.utils import extract_diff
from safetensors.torch import load_file, save_file
from torch import nn

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"

# The modules of the model, by the short names of the cases.
MODULES = {
    "to_q": f"{BLOCK}.attn1.to_q",
    "to_out": f"{BLOCK}.attn1.to_out.0",
    "ff": f"{BLOCK}.ff.net.2",
    "norm": f"{BLOCK}.norm1",
    "proj_in": "down_blocks.0.attentions.0.proj_in",
    "group": "down_blocks.0.resnets.0.norm1",
    "conv": "down_blocks.0.resnets.0.conv1",
    "oblong": "down_blocks.0.downsamplers.0.conv",
    "line": "line_embedding.conv",
    "volume": "volume_embedding.conv",
}


def make_modules() -> dict:
    return {
        "to_q": nn.Linear(12, 16, bias=False),
        "to_out": nn.Linear(16, 12),
        "ff": nn.Linear(30, 36, bias=False),
        "norm": nn.LayerNorm(12),
        "proj_in": nn.Conv2d(8, 12, 1),
        "group": nn.GroupNorm(2, 6),
        "conv": nn.Conv2d(6, 12, 3),
        "oblong": nn.Conv2d(4, 6, (2, 3)),
        "line": nn.Conv1d(4, 6, 3, bias=False),
        "volume": nn.Conv3d(4, 6, (1, 2, 2), bias=False),
    }


def make_model(dtype: torch.dtype) -> nn.Module:
    """The model with weights that dtype holds, in float32."""
    root = nn.Module()
    for name, module in make_modules().items():
        *path, last = MODULES[name].split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, module)
    for name, parameter in root.named_parameters():
        values = random(f"base/{dtype}/{name}", parameter.shape) * 0.25
        parameter.data = values.to(dtype).float()
    return root.requires_grad_(False)


def random(name: str, shape) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).float()


def make_network(model, adapter, multiplier=1.0):
    """LyCORIS' network on the model, as sd-scripts or the user of its wrapper creates it."""
    preset = {
        "enable_conv": True,
        "target_module": [],
        "target_name": [],
        "unet_target_module": [],
        "unet_target_name": [],
        "name_algo_map": {},
    }
    names = [MODULES[name] for name in adapter.modules]
    lists = ("unet_target_name", "target_name")
    preset |= {key: names for key in lists}
    preset["name_algo_map"] = {MODULES[k]: dict(v) for k, v in adapter.algorithms.items()}
    lycoris.config.PRESET["fixture"] = preset
    options = dict(adapter.options, preset="fixture", warn_on_unmatched=False)
    if adapter.wrapper:
        network = lycoris.create_lycoris(
            model, multiplier, adapter.rank, adapter.alpha, **options
        )
        network.apply_to()
    else:
        network = lycoris.kohya.create_network(
            multiplier, adapter.rank, adapter.alpha, None, [], model, **options
        )
        network.apply_to([], model, False, True)
    assert len(network.loras) == len(names), (adapter, [x.lora_name for x in network.loras])
    return network


SPREAD = {"weight": 0.3, "w_norm": 0.1, "b_norm": 0.1, "hada_w1_b": 1.0, "lambda_layer": 0.1}


@torch.no_grad()
def train(network, name: str):
    """Gives every parameter a random value."""
    for key, parameter in network.named_parameters():
        values = random(f"{name}/{key}", parameter.shape)
        last = key.rpartition(".")[2]
        if last == "dora_scale":
            parameter.mul_(1 + values / 5)
        elif isinstance(network.get_submodule(key.rpartition(".")[0]), FullModule):
            parameter.add_(values / 16)
        else:
            parameter.copy_(values * SPREAD.get(last, 0.5))


def save(network, adapter, path):
    """LyCORIS' own save_weights, with the metadata of sd-scripts where it trains."""
    metadata = None
    if not adapter.wrapper:
        options = {key: str(value) for key, value in adapter.options.items()}
        metadata = {
            "ss_network_module": "lycoris.kohya",
            "ss_network_dim": str(adapter.rank),
            "ss_network_alpha": str(float(adapter.alpha)),
            "ss_network_args": json.dumps(options),
        }
    network.save_weights(str(path), adapter.dtype, metadata)


@torch.no_grad()
def extract(dtype, adapter, name: str, path):
    """Writes what LyCORIS extracts from the base and a model with other weights."""
    base, tuned = make_model(dtype), make_model(dtype)
    for module in adapter.modules:
        for key, parameter in tuned.get_submodule(MODULES[module]).named_parameters():
            parameter.add_(random(f"{name}/{module}/{key}", parameter.shape) / 8)
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        state = extract_diff([], [], base, tuned, **adapter.extract)
    save_file(state, path)


def load(model, adapter, path, weight: float):
    """The network in float64 with the values of a file, with weight as LyCORIS' multiplier."""
    network = make_network(model, adapter, weight).double()
    # Cast first: FullModule casts the base to the dtype of the differences that it loads.
    state = {key: t.double() for key, t in load_file(path).items()}
    for key in state:
        if key.endswith(".alpha"):
            state[key] = state[key].reshape(())  # the extraction writes the shape [1]
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    for lora in network.loras:
        # The loader divides the alpha of the file by the rank: rounded, and with rsLoRA's factor.
        alpha = state.get(f"{lora.lora_name}.alpha")
        if alpha is not None and not (getattr(lora, "use_w1", 0) and getattr(lora, "use_w2", 0)):
            lora.scale = float(alpha) / lora.lora_dim
    return network.eval()


@torch.no_grad()
def merged(model, networks) -> dict:
    """The weights and biases of the adapted modules, as forward applies them.

    Linear layers and convolutions get each unit vector and zero as input. A norm has no such input:
    for it, make_weight gives what forward uses.
    """
    result = {}
    loras = {id(lora.org_module[0]): lora for network in networks for lora in network.loras}
    for name, module in model.named_modules():
        lora = loras.get(id(module))
        if lora is None:
            continue
        if isinstance(lora, NormModule):
            weight, bias = lora.make_weight(lora.multiplier)
            check_norm(module, weight, bias)
        else:
            weight, bias = measure(module, lora)
        result[f"{name}.weight"] = weight.contiguous()
        if bias is not None and has_bias(lora):
            result[f"{name}.bias"] = bias.contiguous()
    return result


def has_bias(lora) -> bool:
    return hasattr(lora, "b_norm") or getattr(lora, "bias", None) is not None


def measure(module, lora):
    """W' and b' from the outputs for unit vectors and for zero."""
    shape = lora.shape
    columns = torch.Size(shape[1:]).numel()
    inputs = torch.eye(columns, dtype=torch.float64).reshape(columns, *shape[1:])
    zero = module(torch.zeros_like(inputs[:1])).reshape(-1)
    outputs = module(inputs).reshape(columns, -1) - zero
    return outputs.T.reshape(shape), zero


def check_norm(module, weight, bias):
    """The outputs for random inputs are those of a norm with these weights."""
    x = random("norm", (4, weight.numel())).double()
    if isinstance(module, nn.GroupNorm):
        want = nn.functional.group_norm(x, module.num_groups, weight, bias, module.eps)
    else:
        want = nn.functional.layer_norm(x, weight.shape, weight, bias, module.eps)
    assert torch.allclose(module(x), want, rtol=1e-12, atol=1e-12)
