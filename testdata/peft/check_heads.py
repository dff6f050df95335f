"""Merges every case of heads/ with loratool and loads the result with transformers. Run by hand; heads/RESULT.txt is what it printed.

    LORATOOL=path/to/loratool python check_heads.py

The class is the one that config.json names. No parameter of it may be missing or have another shape, and what it does not use must
be heads that the base has. Its logits in float64 are compared with those of PEFT's merged model: with the values rounded to the
dtype of the base they are equal; with the exact values they differ by the last column, in steps of the dtype.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
sys.dont_write_bytecode = True

import torch  # noqa: E402
import transformers as tf  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.utils import logging  # noqa: E402

HEADS = Path(__file__).parent / "heads"


def merge(case: Path, out: Path):
    command = [os.environ.get("LORATOOL", "loratool"), "merge", case / "base", case / "adapter", "-o", out, "--add-tensors", "-q"]
    subprocess.run(command, check=True)


def save_truth(case: Path, out: Path, to: Path, dtype):
    """PEFT's merged values, rounded to a dtype, with the configuration of the output."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(case / "truth.safetensors").items()}
    to.mkdir()
    (to / "config.json").write_text((out / "config.json").read_text())
    save_file({name: tensor.double() for name, tensor in tensors.items()}, to / "model.safetensors", metadata={"format": "pt"})


def load(directory: Path):
    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    model, info = getattr(tf, name).from_pretrained(directory, torch_dtype=torch.float64, output_loading_info=True)
    return model.eval(), {kind: sorted(map(str, found)) for kind, found in info.items() if found}


def logits(model) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        result = model(pixel_values=torch.randn(2, 3, 8, 8, generator=draw, dtype=torch.float64))
    else:
        result = model(input_ids=torch.randint(1, 24, (2, 7), generator=draw))
    if "start_logits" in result:
        return torch.stack([result.start_logits, result.end_logits])
    return result.logits


@torch.no_grad()
def check(case: Path):
    description = json.loads((case / "case.json").read_text())
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        merge(case, out)
        model, info = load(out)
        unused = info.pop("unexpected_keys", [])
        assert not info, info
        assert type(model).__name__ == description["class"] and model.config.num_labels == description["labels"]
        base = {description["prefix"] + name for file in (case / "base").glob("*.safetensors") for name in load_file(file)}
        assert set(unused) <= base - load_file(case / "truth.safetensors").keys(), unused
        dtype = next(iter(load_file(next(out.glob("*.safetensors"))).values())).dtype
        save_truth(case, out, Path(temporary) / "rounded", dtype)
        save_truth(case, out, Path(temporary) / "exact", torch.float64)
        got = logits(model)
        rounded, exact = (logits(load(Path(temporary) / name)[0]) for name in ("rounded", "exact"))
    assert torch.equal(got, rounded), (got, rounded)
    steps = ((got - exact).abs().max() / exact.abs().max() / torch.finfo(dtype).eps).item()
    print(f"{case.name:13} {type(model).__name__:35} {str(dtype)[6:]:9} {len(unused):6} {'equal':8} {steps:.2f}", flush=True)


def main():
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    print(f"transformers {tf.__version__}")
    print(f"{'case':13} {'class':35} {'dtype':9} {'unused':6} {'rounded':8} steps from the exact values")
    for case in sorted(path.parent for path in HEADS.glob("*/case.json")):
        check(case)


if __name__ == "__main__":
    main()
