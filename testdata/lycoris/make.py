"""Writes the fixtures of LyCORIS: bases, adapters, and the values that they merge to."""

import argparse
import json
import math
import os
import shutil
import struct
import sys
from fractions import Fraction
from pathlib import Path

ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "LYCORIS_KERNEL_BACKEND": "torch"}
if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
sys.dont_write_bytecode = True

import importlib.metadata  # noqa: E402
import logging  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import exact  # noqa: E402
import network  # noqa: E402
from cases import BF16, CASES, F16, F32, REFUSED  # noqa: E402

NAMES = {BF16: "bf16", F16: "f16", F32: "f32"}
VERSION = importlib.metadata.version("lycoris-lora")


def write_base(dtype, out: Path):
    state = {name: t.to(dtype) for name, t in network.make_model(dtype).state_dict().items()}
    save_file(state, out / "bases" / f"{NAMES[dtype]}.safetensors")


def write_adapter(adapter, dtype, name: str, path: Path):
    if adapter.extract:
        network.extract(dtype, adapter, name, path)
    else:
        made = network.make_network(network.make_model(dtype), adapter)
        network.train(made, name)
        network.save(made, adapter, path)
    if adapter.edit:
        state = load_file(path)
        adapter.edit(state)
        save_file(state, path)
    sort_metadata(path)


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


def make_case(case, out: Path) -> dict:
    """Writes the adapters and the merged values of a case; returns its line of index.json."""
    paths = []
    for number, adapter in enumerate(case.adapters):
        suffix = f"-{number}" if len(case.adapters) > 1 else ""
        paths.append(out / "adapters" / f"{case.name}{suffix}.safetensors")
        write_adapter(adapter, case.base, (case.same_as or case.name) + suffix, paths[-1])
    merged = merge(case, paths)
    truth = out / "merged" / f"{case.same_as or case.name}.safetensors"
    if case.same_as:
        same = load_file(truth)
        assert same.keys() == merged.keys()
        assert all(torch.equal(t, same[name]) for name, t in merged.items())
    else:
        save_file(merged, truth)
    return {
        "name": case.name,
        "base": f"bases/{NAMES[case.base]}.safetensors",
        "adapters": [str(path.relative_to(out)) for path in paths],
        "weights": weights(case),
        "merged": str(truth.relative_to(out)),
        "comment": case.comment,
    }


def weights(case):
    return case.weights or [1.0] * len(case.adapters)


def merge(case, paths) -> dict:
    """The merged tensors by LyCORIS in float64, which exact arithmetic confirms."""
    model = network.make_model(case.base).double()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    networks = [
        network.load(model, adapter, path, weight)
        for adapter, path, weight in zip(case.adapters, paths, weights(case))
    ]
    merged = network.merged(model, networks)
    flat = {
        f"{prefix}_{name.replace('.', '_')}": name
        for name in network.MODULES.values()
        for prefix in ("lora_unet", "lycoris")
    }
    files = [load_file(path) for path in paths]
    moved = check(case, merged, exact.merge(state, files, weights(case), flat.get))
    if moved:
        print(f"{case.name}: {moved} values beside a tie", flush=True)
    return merged


def check(case, merged: dict, truth: dict) -> int:
    """Every value is exact to a part of 1e-12, and rounds as the exact one in the base's dtype.

    Some exact values lie so close to a tie that float64 cannot tell: these become the next float64
    on the side of the exact value. Returns their number.
    """
    assert merged.keys() == truth.keys(), (case.name, merged.keys() ^ truth.keys())
    moved = 0
    for name, t in merged.items():
        assert t.dtype == torch.float64 and t.shape == truth[name].shape, (case.name, name)
        values = t.view(-1)
        for i, (got, want) in enumerate(zip(values.tolist(), truth[name].reshape(-1))):
            error = want - Fraction(got)
            assert abs(error) <= abs(want) / 10**12, (case.name, name, got, float(want))
            if exact.round_to(Fraction(got), case.base) != exact.round_to(want, case.base):
                got = math.nextafter(got, math.inf if error > 0 else -math.inf)
                assert exact.round_to(Fraction(got), case.base) == exact.round_to(want, case.base)
                values[i] = got
                moved += 1
    return moved


def differs(case, line, out: Path) -> bool:
    """Whether LyCORIS fails on the files that are there, or merges them to other values."""
    try:
        merged = merge(case, [out / path for path in line["adapters"]])
        want = load_file(out / line["merged"])
        assert merged.keys() == want.keys()
        for name, t in merged.items():
            assert torch.allclose(t, want[name], rtol=1e-12, atol=0), name
    except Exception as error:
        print(f"{case.name}: {type(error).__name__}: {error}")
        return True
    return False


def make_refused(case, out: Path) -> dict:
    path = out / "refused" / f"{case.name}.safetensors"
    write_adapter(case.adapter, BF16, case.name, path)
    return {
        "name": case.name,
        "base": f"bases/{NAMES[BF16]}.safetensors",
        "adapters": [str(path.relative_to(out))],
        "says": case.says,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="directory to write into"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and merge the files that are there"
    )
    options = parser.parse_args()

    logging.disable()
    torch.set_num_threads(1)
    if options.check:
        lines = json.loads((options.out / "index.json").read_text())["cases"]
        sys.exit(sum(differs(case, line, options.out) for case, line in zip(CASES, lines)))
    for kind in ("bases", "adapters", "merged", "refused"):
        shutil.rmtree(options.out / kind, ignore_errors=True)
        (options.out / kind).mkdir(parents=True)
    for dtype in NAMES:
        write_base(dtype, options.out)
    index = {
        "producer": f"lycoris-lora {VERSION}, torch {torch.__version__.partition('+')[0]}",
        "cases": [make_case(case, options.out) for case in CASES],
        "refused": [make_refused(case, options.out) for case in REFUSED],
    }
    (options.out / "index.json").write_text(
        json.dumps(index, indent=1, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    main()
