"""Writes the PEFT fixtures: bases, merge cases with their true results, and refuse cases."""

import argparse
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

# The order of a set in adapter_config.json depends on the hash seed.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
sys.dont_write_bytecode = True

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.utils import logging  # noqa: E402

from adapters import apply_edits  # noqa: E402
from bases import BASES  # noqa: E402
from eras import ERAS  # noqa: E402
from truth import add_exactly, by_experts, by_formula, by_peft, by_peft_saved, by_peft_single, check_close, read_double  # noqa: E402

PRODUCER = f"peft {peft.__version__}, transformers {transformers.__version__}"
if PRODUCER in ERAS:
    MERGE, REFUSE = ERAS[PRODUCER](), []
else:
    PRODUCER = f"peft {peft.__version__}"
    from cases import MERGE, REFUSE


def write_adapters(case, directory: Path) -> list[Path]:
    paths = []
    for index, adapter in enumerate(case.adapters):
        path = directory / ("adapter" if index == 0 else f"adapter{index + 1}")
        adapter.write(case.base, f"{case.name}/{path.name}", path)
        paths.append(path)
    return paths


def write_description(directory: Path, **fields):
    (directory / "case.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def make_merge(case, directory: Path):
    paths = write_adapters(case, directory)
    weights = case.weights or [1.0] * len(paths)
    if case.experts is not None:
        write_merge(case, directory, paths, weights, experts_truth(case, paths, weights))
        return
    if case.saved:
        write_merge(case, directory, paths, weights, truth_saved(case, paths, weights))
        return
    if case.via:
        write_merge(case, directory, paths, weights, truth_via(case, paths, weights))
        return
    merged = by_peft(case.base, case.adapters[0].model, paths, weights) if case.by_peft else None
    for adapter, path in zip(case.adapters, paths):
        apply_edits(path, adapter.disguise)
    options = case.options or {}
    targeted = by_formula(case.base, paths, weights, twice="OutProjTwice" in options, tied=options.get("Tied"))
    original = read_double(Path("bases") / case.base)
    if case.about:
        check_close({name: t.double() for name, t in by_peft_single(case.base, paths[0]).items()}, {**original, **targeted}, case.about)
    if merged is None:
        truth = targeted
    else:
        check_close(merged, {**original, **targeted})
        truth = {name: merged[name].contiguous() for name in targeted}
    if case.exact:
        truth = by_formula(case.base, paths, weights, add=add_exactly)
        check_close(truth, targeted)
    write_merge(case, directory, paths, weights, truth)


def experts_truth(case, paths, weights):
    """What PEFT makes of the experts, or the formula where PEFT does not merge them; the two agree."""
    merged = by_peft_saved(case.base, paths, weights) if case.by_peft else None
    for adapter, path in zip(case.adapters, paths):
        apply_edits(path, adapter.disguise)
    truth = by_experts(case.base, paths[0], **case.experts)
    if merged is not None:
        original = read_double(Path("bases") / case.base)
        check_close(merged, {**original, **truth})
        truth = {name: merged[name].contiguous() for name in truth}
    return truth


def truth_saved(case, paths, weights):
    """What PEFT merges and saves: as many tensors change as the adapter has layers."""
    merged = by_peft_saved(case.base, paths, weights)
    original = read_double(Path("bases") / case.base)
    changed = {name: t.contiguous() for name, t in merged.items() if not torch.equal(t, original[name])}
    layers = sum(name.endswith("lora_A.weight") for name in load_file(paths[0] / "adapter_model.safetensors"))
    assert len(changed) == layers, (len(changed), layers)
    return changed


def truth_via(case, paths, weights):
    """What PEFT makes of the checkpoint with a module per expert, stacked."""
    merged = by_peft(case.via, None, paths, weights)
    check_close(by_formula(case.via, paths, weights), merged)
    BASES[case.base].edit(merged, {})
    original = read_double(Path("bases") / case.base)
    return {name: t.contiguous() for name, t in merged.items() if not torch.equal(t, original[name])}


def write_merge(case, directory, paths, weights, truth):
    original = read_double(Path("bases") / case.base)
    for name, tensor in truth.items():
        if name in original and tensor.shape == original[name].shape:
            check_size(name, tensor, original[name], case)
    save_file(truth, directory / "truth.safetensors")
    fields = {
        "base": case.base,
        "adapters": [path.name for path in paths],
        "weights": weights,
        "producer": PRODUCER,
        "comment": case.comment,
    }
    extra = {name: value for name in ("warn", "options") if (value := getattr(case, name))}
    write_description(directory, **fields, **extra)


def check_size(name, tensor, original, case):
    """The change is visible, but not larger than the weights."""
    ratio = ((tensor - original).norm() / original.norm()).item()
    low, high = case.size
    assert low <= ratio <= high, f"{case.name} {name}: relative change {ratio:.3g}"


def make_refuse(case, directory: Path):
    paths = write_adapters(case, directory)
    for adapter, path in zip(case.adapters, paths):
        apply_edits(path, adapter.disguise)
        if case.finish:
            case.finish(path)
    write_description(
        directory,
        base=case.base,
        adapters=[path.name for path in paths],
        words=case.words,
        producer=PRODUCER,
        comment=case.comment,
    )


def write_all(kind: str, entries: dict, write, only=""):
    for name, entry in entries.items():
        if only not in name:
            continue
        directory = Path(kind) / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        print(directory, flush=True)
        write(entry, directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="directory to write into")
    parser.add_argument("--only", default="", help="write only the cases whose name contains this, and bases that are not there")
    options = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(options.out)  # the adapters name their base by a relative path
    if not options.only and PRODUCER not in ERAS:
        shutil.rmtree("bases", ignore_errors=True)
    absent = {name: base for name, base in BASES.items() if not (Path("bases") / name).exists()}
    write_all("bases", absent, lambda base, directory: base.write(directory))
    write_all("merge", {case.name: case for case in MERGE}, make_merge, options.only)
    write_all("refuse", {case.name: case for case in REFUSE}, make_refuse, options.only)


if __name__ == "__main__":
    main()
