"""Asks PEFT which keys it accepts for the tensors of many models, and writes the answers to truth.json.

    python truth.py            (requirements.txt of ../../peft)

For each class of models.py:

    disk    the tensors that save_pretrained writes: their shape, and where it has another name there, the parameter of
            the model in memory that they are, or are a part of. It is found by value: every parameter is filled with a
            number of its own, and the file is searched for it.
    state   the state dict of the model in memory, which is what a module in modules_to_save must have whole
    lora    the modules that target_modules can name, with the keys and shapes of rank 1 that PEFT then saves, and only
            where the forward pass does with them what the merged weights do: some models read a weight past its module
    params  the same for target_parameters, of modules that target_modules cannot name, or not in all models with experts:
            the names of parameters, and the keys of all of one module together
"""

import copy
import json
import logging
import tempfile
import warnings

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from models import MODELS, forward, make

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

WRAPPED = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D,
           torch.nn.MultiheadAttention)


def saved(model: torch.nn.Module) -> tuple[dict, dict]:
    """The tensors on the disk, and the configuration."""
    marked, names = copy.deepcopy(model).float(), {}
    with torch.no_grad():
        for i, (name, t) in enumerate(marked.state_dict().items()):
            if t.is_floating_point():
                t.fill_(i + 1)  # tied ones get the number of the last, and their first name below
        for name, t in marked.named_parameters():
            names[t.flatten()[0].item()] = name
        for name, t in marked.named_buffers():
            if t.numel() and t.is_floating_point():
                names.setdefault(t.flatten()[0].item(), name)
    out = {}
    with tempfile.TemporaryDirectory() as d:
        marked.save_pretrained(d)
        config = json.load(open(d + "/config.json"))
        with safe_open(d + "/model.safetensors", "pt") as f:
            for key in f.keys():
                t = f.get_tensor(key)
                live = names[t.flatten()[0].item()] if t.is_floating_point() else key
                assert not t.is_floating_point() or t.min() == t.max(), key
                out[key] = [list(t.shape)] + ([live] if live != key else [])
    return out, {k: config.get(k) for k in ("model_type", "architectures", "tie_word_embeddings") if k in config}


def adapted(model: torch.nn.Module, **fields) -> dict | None:
    """The keys of rank 1 that PEFT saves, without its prefix, or None where the adapter does not do what its merge does."""
    config = LoraConfig(r=1, init_lora_weights=False, **fields)
    torch.manual_seed(5)
    try:
        peft = get_peft_model(copy.deepcopy(model), config)
        keys = {
            k.removeprefix("base_model.model."): list(v.shape)
            for k, v in get_peft_model_state_dict(peft, save_embedding_layers=False).items()
        }
        with_adapter = forward(peft)
        merged = peft.merge_and_unload()
    except Exception:  # PEFT or the model refuses, in many ways
        return None
    same = all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(with_adapter, forward(merged), strict=True))
    return keys if same else None


def truth(name: str) -> dict:
    model = make(name)
    disk, config = saved(model)
    lora, params = {}, {}
    has_experts = any(path.endswith(".experts") for path, _ in model.named_modules())
    for path, module in model.named_modules():
        if isinstance(module, WRAPPED):
            keys = adapted(model, target_modules=[path])
            if keys and all(k.startswith(path + ".") for k in keys):
                lora[path] = {k.removeprefix(path + "."): v for k, v in keys.items()}
        own = [n for n, p in module.named_parameters(recurse=False) if p.dim() in (2, 3)]
        if not own or isinstance(module, (torch.nn.Embedding, torch.nn.MultiheadAttention)):
            continue
        names = [f"{path}.{n}" for n in own if own == ["weight"] or len(own) > 1 and module._parameters[n].dim() == 3]
        like_experts = has_experts and path.rpartition(".")[2] in ("gate", "router", "gate_proj", "up_proj", "down_proj")
        if names and path and (path not in lora or like_experts):
            keys = adapted(model, target_modules=[], target_parameters=names)
            if keys:
                params[",".join(names)] = keys
    state = {k: list(v.shape) for k, v in model.state_dict().items()}
    return {"config": config, "disk": disk, "state": state, "lora": lora, "params": params}


def compact(value, depth: int = 0) -> str:
    """JSON with one line per entry of the third level."""
    if depth == 3 or not value or not isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    inner = ",\n".join(json.dumps(k) + ":" + compact(v, depth + 1) for k, v in value.items())
    return "{\n" + inner + "}"


if __name__ == "__main__":
    import sys

    only = sys.argv[1:]
    out = {name: truth(name) for name in MODELS if not only or name in only}
    text = compact(out) + "\n"
    if only:
        print(text)
    else:
        open("truth.json", "w").write(text)
