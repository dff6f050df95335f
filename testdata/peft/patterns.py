"""Writes the cases of one release of PEFT, whichever is installed: how it resolves rank_pattern and alpha_pattern.

The model is not one of transformers, whose old releases do not read new checkpoints, but the linear layers of a base under their
names. The release itself resolves the patterns twice: when it makes the adapter, and when it loads the saved one to merge it.
"""

import json
import os
import shutil
import sys
import warnings
import zlib
from pathlib import Path

if os.environ.get("PYTHONHASHSEED") != "0":  # sets in adapter_config.json
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})
sys.dont_write_bytecode = True
warnings.simplefilter("ignore")

import peft  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

HERE = Path(__file__).parent
BASE = "llama-deep"
VERSION = peft.__version__
MINOR = int(VERSION.split(".")[1])

# Patterns that some release reads differently, and what the warning says where it does.
CASES = {
    "shared": (
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"self_attn.q_proj": 12, "v_proj": 3}},
        "One key for both patterns until 0.13: the q projection of layer 0 has a rank of its own, and no alpha under that key.",
    ),
    "bar": (
        {"rank_pattern": {"q_proj|v_proj": 2}, "alpha_pattern": {"v_proj|q_proj": 12}},
        "A bar in a key splits the whole expression until 0.14.",
    ),
    "whole": (
        {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 12, "q_proj": 3, "model.layers.1.self_attn.v_proj": 5}},
        "A key that is the whole name of a module matches no expression until 0.14, and is looked up where no other matches.",
    ),
    "python": (
        {
            "rank_pattern": {r"layers\.(?!1\.)\d+\.self_attn\.[qv]_proj": 2},
            "alpha_pattern": {r"(?P<s>s)elf_attn\.(?<=(?P=s)elf_attn\.)v_proj": 3, r"\w{,4}ers\.1\..*q_proj\Z": 12},
        },
        "Look-ahead, look-behind, a back reference and {,n}, which Go's own engine does not have.",
    ),
}
if MINOR < 6:
    CASES = {"none": ({}, "Before rank_pattern and alpha_pattern.")}


def tree(dtype) -> torch.nn.Module:
    """The linear layers of the base, by name."""
    root = torch.nn.Module()
    for name, tensor in load_file(HERE / "bases" / BASE / "model.safetensors").items():
        path = name.split(".")[:-1]
        if not path[-1].endswith("_proj"):
            continue
        parent = root
        for part in path[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        linear = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, dtype=dtype)
        linear.weight.data = tensor.to(dtype)
        parent.add_module(path[-1], linear)
    return root


def train(model, seed: str):
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.02


def write(name: str, patterns: dict, comment: str):
    directory = HERE / "eras" / f"{VERSION}-{name}"
    shutil.rmtree(directory, ignore_errors=True)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **patterns)
    model = peft.get_peft_model(tree(torch.float32), config)
    train(model, name)
    model.save_pretrained(directory / "adapter")
    (directory / "adapter/README.md").unlink(missing_ok=True)

    merged = peft.PeftModel.from_pretrained(tree(torch.float64), directory / "adapter").double().merge_and_unload()
    original = tree(torch.float64).state_dict()
    truth = {n: t for n, t in merged.state_dict().items() if not torch.equal(t, original[n])}
    assert len(truth) == 4, truth.keys()
    save_file(truth, directory / "truth.safetensors")
    case = {"base": BASE, "adapters": ["adapter"], "weights": [1.0], "producer": f"peft {VERSION}", "comment": comment}
    if MINOR < 15 and name in ("bar", "whole") or MINOR < 14 and name == "shared":
        case["warn"] = ["read as peft", "0.14" if MINOR == 14 else "from 0.6 to 0.13"]
    (directory / "case.json").write_text(json.dumps(case, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for name, (patterns, comment) in CASES.items():
        write(name, patterns, comment)
