"""Loads with PEFT the directories that loratool writes for it, and notes the digests of the files.

    python written_peft.py path/to/loratool

Every adapter of the cases is converted to PEFT's directories, one for each component.
PeftModel.from_pretrained loads each into the component alone, in float64, and merges it. No key may
be missing or unexpected, and the weights, rounded once, must be those of the case. The digests go to
written_peft.json, where the Go test of the same conversions finds them.
"""

import make  # noqa: F401  sets the environment first

import hashlib
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import peft
from safetensors.torch import load_file

from bases import BASES, same
from truth import changed, double, models

HERE = Path(__file__).parent
FILES = "adapter_config.json", "adapter_model.safetensors"


def convert(tool, source, base, directory):
    """Yields the components of the adapter, and the directory of each."""
    command = [tool, "convert", str(source), "--to", "peft", "--base", str(base), "--force", "-o"]
    run = subprocess.run([*command, str(directory / "all")], capture_output=True, text=True)
    if not run.returncode:
        return {"": directory / "all"}
    if "choose one with" not in run.stderr:
        raise SystemExit(run.stderr)
    listed = run.stderr.split("has layers of ")[1].split(", and")[0].split(", ")
    for name in listed:
        subprocess.run([*command, str(directory / name), "--only", name], check=True, capture_output=True)
    return {name: directory / name for name in listed}


def component_of(directory, parts):
    """The component that the only directory of an adapter is for: the one that has the modules."""
    modules = json.loads((directory / "adapter_config.json").read_text())["target_modules"]
    if isinstance(modules, str):
        modules = modules.replace("\\", "").split("|")
    fits = [
        name for name, model in parts.items()
        if set(modules) <= {module for module, _ in model.named_modules()}
    ]
    assert len(fits) == 1, fits
    return fits[0]


def load(model, directory, weight):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(model, str(directory), autocast_adapter_dtype=False)
    texts = [str(w.message) for w in caught if "adapter keys" in str(w.message)]
    assert not texts, texts
    for module in loaded.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scaling["default"] *= weight
            for factors in (module.lora_A, module.lora_B):
                factors.double()
    return loaded.merge_and_unload()


def by_peft(base, directories, weights):
    pipe = base.build()
    for model in models(pipe):
        model.double()
    for directory, weight in zip(directories, weights):
        for name, path in directory.items():
            parts = {key: m for key, m in pipe.components.items() if m in models(pipe)}
            name = name or component_of(path, parts)
            setattr(pipe, name, load(getattr(pipe, name), path, weight))
    return base.state(pipe)


def main(tool):
    digests = {}
    for case in json.loads((HERE / "index.json").read_text())["cases"]:
        base = BASES.get(case["base"].removeprefix("bases/"))
        if not base or case.get("alpha") or case.get("scale") or case.get("only"):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            directories = []
            for number, adapter in enumerate(case["adapters"]):
                target = Path(scratch) / str(number)
                target.mkdir()
                directories.append(convert(tool, HERE / adapter, HERE / case["base"], target))
                for name, path in directories[-1].items():
                    whole = b"".join((path / file).read_bytes() for file in FILES)
                    digest = hashlib.sha256(whole).hexdigest()
                    key = f"{adapter} {name}".strip()
                    assert digests.setdefault(key, digest) == digest
            merged = by_peft(base, directories, case["weights"])
        got = base.rename(changed(base.weights(), double(merged)), base.name, None)
        same(got, load_file(HERE / case["merged"]))
        print("ok", case["name"], flush=True)
    text = json.dumps({"producer": make.PRODUCER, "files": digests}, indent=1)
    (HERE / "written_peft.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
