"""Loads with diffusers what loratool writes for it, and notes the digests of these files.

    python written.py path/to/loratool

Every adapter of the cases is converted to the dialect of diffusers, with its scale in the header and
then with its scale in the factors. diffusers loads and fuses the new file in float64. Its weights,
rounded once, must be those of the case. The digests go to written.json, where the Go test of the
same conversions finds them.
"""

import make  # noqa: F401  sets the environment first

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from bases import BASES, same
from truth import by_diffusers, changed

HERE = Path(__file__).parent

# The factors of these have other dimensions than the weights. diffusers wants the same, which only
# the base tells.
DIMENSIONS = ("sd1-kohya-matrices", "sdxl-kohya-4d")


def is_t5(name):
    """diffusers loads no adapter into a T5."""
    return "DenseReluDense" in name or "SelfAttention" in name


def convert(tool, source, target, base, *flags):
    command = [tool, "convert", str(source), "--to", "diffusers", "-o", str(target), "--force"]
    run = subprocess.run([*command, *flags], capture_output=True, text=True)
    unknown = "several architectures" in run.stderr or "has no name for" in run.stderr
    if unknown or source.parent.name in DIMENSIONS:
        run = subprocess.run(
            [*command, *flags, "--base", str(base)], capture_output=True, text=True
        )
    if run.returncode:
        raise SystemExit(run.stderr)


def main(tool):
    digests = {}
    for case in json.loads((HERE / "index.json").read_text())["cases"]:
        base = BASES.get(case["base"].removeprefix("bases/"))
        if not base or case.get("alpha") or case.get("scale") or case.get("only"):
            continue
        for name, flags in {"": (), " --fold-scale": ("--fold-scale",)}.items():
            with tempfile.TemporaryDirectory() as directory:
                paths = []
                for number, adapter in enumerate(case["adapters"]):
                    paths.append(Path(directory) / f"{number}.safetensors")
                    convert(tool, HERE / adapter, paths[-1], HERE / case["base"], *flags)
                    digest = hashlib.sha256(paths[-1].read_bytes()).hexdigest()
                    assert digests.setdefault(adapter + name, digest) == digest
                merged = by_diffusers(base, paths, case["weights"])
                got = base.rename(changed(base.weights(), merged), base.name, None)
                want = load_file(HERE / case["merged"])
                same(got, {name: t for name, t in want.items() if not is_t5(name)})
            print("ok", case["name"] + name)
    text = json.dumps({"producer": make.PRODUCER, "files": digests}, indent=1)
    (HERE / "written.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
