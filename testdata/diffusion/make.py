"""Writes the fixtures of diffusion models: bases, adapters and merged values."""

import argparse
import json
import os
import shutil
import struct
import sys
import warnings
from pathlib import Path

# The order of a set in the metadata of an adapter depends on the hash seed.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
}
if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
sys.dont_write_bytecode = True
warnings.simplefilter("ignore")

import diffusers  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import transformers.integrations.peft  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from bases import BASES, same  # noqa: E402
from cases import CASES  # noqa: E402
from truth import by_diffusers, by_formula, changed, check_exact  # noqa: E402

# transformers 5.24 asks for a release of PEFT that is not out; nothing that is used here needs it.
transformers.integrations.peft.MIN_PEFT_VERSION = peft.__version__

PRODUCER = (
    f"diffusers {diffusers.__version__}, peft {peft.__version__}, "
    f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"
)


def make_case(case, out: Path) -> list[dict]:
    """Writes the adapters and the merged tensors of a case; returns its lines of index.json."""
    base, directory = BASES[case.base], out / "cases" / case.name
    directory.mkdir(parents=True)
    made, paths = [], []
    for adapter in case.adapters:
        paths.append(directory / adapter.file)
        made.append(save_adapter(base, case, adapter, paths[-1]))
    weights = case.weights or [1.0] * len(paths)
    state = base.weights()
    merged = by_formula(base, state, made, weights)
    check_exact(merged)
    if case.by_diffusers:
        same(by_diffusers(base, paths, weights), merged)
    return [
        make_merge(case, base, file, only, changed(state, merged), paths, out)
        for file, only in (case.on or base.files()).items()
    ]


def save_adapter(base, case, adapter, path: Path):
    if adapter.save:
        layers = adapter.save(base, case.name, path)
    else:
        layers = adapter.layers(base, case.name)
        save_file(
            {name: t.clone() for name, t in adapter.write(layers).items()},
            path,
            adapter.metadata or None,
        )
    sort_metadata(path)
    return layers


def sort_metadata(path: Path):
    """safetensors writes the metadata in an order of its own on every run."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def make_merge(case, base, file, only, tensors, paths, out: Path) -> dict:
    tensors = base.rename(tensors, file, only)
    kind = "file-" if file in base.single else "directory-"
    expected = (
        out
        / "cases"
        / (case.group or case.name)
        / f"merged-{kind}{file.removesuffix('.safetensors').replace('/', '-')}.safetensors"
    )
    if expected.exists():
        same(load_file(expected), tensors)  # another grammar of the same adapter has written it
    expected.parent.mkdir(exist_ok=True)
    save_file(tensors, expected)
    line = {
        "name": f"{case.name}/{file}",
        "base": f"bases/{file}",
        "adapters": [str(path.relative_to(out)) for path in paths],
        "weights": case.weights or [1.0] * len(paths),
        "merged": str(expected.relative_to(out)),
        "truth": "diffusers" if case.by_diffusers else "formula",
        "comment": case.comment,
    }
    extra = {
        "only": only and [only],
        "group": case.group and f"{case.group}/{file}",
        **case.options,
    }
    return line | {name: value for name, value in extra.items() if value}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="directory to write into"
    )
    parser.add_argument("--only", default="", help="write only the cases whose name contains this")
    options = parser.parse_args()

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for kind in ("bases", "cases"):
        shutil.rmtree(options.out / kind, ignore_errors=True)
    for base in BASES.values():
        print(base.name, flush=True)
        base.write(options.out / "bases")
    lines = []
    for case in CASES:
        if options.only in case.name:
            print(case.name, flush=True)
            lines += make_case(case, options.out)
    index = {"producer": PRODUCER, "cases": lines}
    (options.out / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
