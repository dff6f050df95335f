"""Fine-tunes tiny bases by a seeded change, extracts adapters with loratool, and asks PEFT what they do.

    python make.py LORATOOL

For each base of CASES: `<case>/tuned` is the fine-tune, `<case>/adapter` what `loratool extract --energy` makes of it, with a rank of
its own for every layer, and `<case>/delta.safetensors` holds, in float64 and under the base's names, what PEFT adds to each weight when
it has loaded that adapter: merge_and_unload on a base of zeros.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CASES = {"llama": ("../peft/bases/llama-f32", 0.9), "gpt2": ("../peft/bases/gpt2", 0.97)}


def tune(base: Path, out: Path, generator: torch.Generator) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(base, out)
    weights = load_file(out / "model.safetensors")
    for name, w in sorted(weights.items()):
        if w.dim() != 2 or "wpe" in name or "embed" in name or "wte" in name or "lm_head" in name:
            continue
        rank = min(w.shape)
        u, _ = torch.linalg.qr(torch.randn(w.shape[0], rank, generator=generator, dtype=torch.float64))
        v, _ = torch.linalg.qr(torch.randn(w.shape[1], rank, generator=generator, dtype=torch.float64))
        # How fast the singular values fall differs from layer to layer, and with it the rank that holds the energy.
        fall = 0.5 + 2 * torch.rand(1, generator=generator, dtype=torch.float64)
        sigma = 0.3 * torch.arange(1, rank + 1, dtype=torch.float64) ** -fall
        weights[name] = (w.double() + u * sigma @ v.T).to(w.dtype)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def delta(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    merged = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).merge_and_unload()
    names = load_file(base / "model.safetensors").keys()
    return {name: p for name, p in merged.state_dict().items() if name in names and p.abs().max() > 0}


for case, (base, energy) in CASES.items():
    out = Path(case)
    generator = torch.Generator().manual_seed(8)
    tune(Path(base), out / "tuned", generator)
    shutil.rmtree(out / "adapter", ignore_errors=True)
    subprocess.run([sys.argv[1], "extract", "-q", base, out / "tuned", "-o", out / "adapter", "--energy", str(energy)], check=True)
    found = delta(Path(base), out / "adapter")
    assert found
    save_file({name: p.contiguous() for name, p in found.items()}, out / "delta.safetensors")
    for f in (out / "tuned").iterdir():
        if f.name != "model.safetensors":
            f.unlink()
