"""Changes every parameter of a model, extracts the change with loratool, and lets PEFT run it.

    python forward.py LORATOOL [CLASS...] | tee forward.txt

For each class of models.py: a base, a fine-tune in which every parameter differs, or one half of them or the other, and what
`loratool extract --to peft` makes of them at full rank. Where loratool names tensors that PEFT cannot hold, these get the base's values in the fine-tune, and it is asked again. PEFT
then has to load the adapter without a warning, and its results have to be those of the fine-tune, with the adapter beside the weights
and with the adapter merged into them; and so have those of `loratool merge`. Errors are relative to the largest result.
"""

import copy
import json
import logging
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from models import MODELS, forward, make

logging.disable(logging.WARNING)
transformers.utils.logging.disable_progress_bar()

# What says nothing about the adapter: transformers' own deprecations, and that GPT-2 has Conv1D.
HARMLESS = re.compile("deprecated|fan_in_fan_out|gradient_checkpointing")


def run(tool: str, *args) -> dict:
    out = subprocess.run([tool, *map(str, args), "--json"], capture_output=True, text=True)
    report = json.loads(out.stdout)
    report["exit"], report["stderr"] = out.returncode, out.stderr
    return report


def error(got: list, want: list) -> float:
    return max((float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True)), default=0)


def check(tool: str, name: str, which: str) -> str:
    part = {"all": (0, 1), "even": (0,), "odd": (1,)}[which]
    title = f"{name:37} {which:4}"
    base = make(name)
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for i, p in enumerate(tuned.parameters()):
            if i % 2 in part:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1)
    refused: list[str] = []
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        base.float().save_pretrained(d / "base")
        while True:
            copy.deepcopy(tuned).float().save_pretrained(d / "tuned")
            report = run(tool, "extract", d / "base", d / "tuned", "-o", d / "x", "--to", "peft", "--rank", 64, "--force")
            if report["exit"] == 0:
                break
            new = [n for n in report["error"].get("tensors") or re.findall(r'"([^"]+)"', report["error"]["message"])
                   if n in dict(base.named_parameters())]
            if not new or set(new) & set(refused):
                return f"{title} fails: {report['error']['message'][:150]}"
            refused += new
            with torch.no_grad():
                for n in new:
                    tuned.get_parameter(n).copy_(base.get_parameter(n))
        base, want = base.double(), forward(tuned)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                peft = PeftModel.from_pretrained(copy.deepcopy(base), d / "x", autocast_adapter_dtype=False)
                said = [str(w.message) for w in caught if not HARMLESS.search(str(w.message))]
                beside = error(forward(peft), want)
                merged = error(forward(peft.merge_and_unload()), want)
            except Exception as e:
                return f"{title} PEFT raises {type(e).__name__}: {str(e)[:150]}"
        back = run(tool, "merge", d / "base", d / "x", "-o", d / "m")
        if back["exit"] == 0:
            a, b = load_file(d / "m/model.safetensors"), load_file(d / "tuned/model.safetensors")
            again = f"{max(float((a[k] - b[k]).abs().max()) for k in b if b[k].is_floating_point()):9.1e}"
        else:
            again = "refused: " + back["error"]["message"][:100]
    leaves = sorted({n.rpartition(".")[2] for n in refused})
    return f"{title} {beside:9.1e} {merged:9.1e} {again}  {'not held: ' + ', '.join(leaves) if leaves else ''} {' | '.join(w[:120] for w in said)}".rstrip()


if __name__ == "__main__":
    print(f"{'':42} {'beside':>9} {'merged':>9} {'loratool':>9}")
    for name in MODELS:
        if len(sys.argv) == 2 or name in sys.argv[2:]:
            for which in ("all", "even", "odd"):
                print(check(sys.argv[1], name, which), flush=True)
