#!/usr/bin/env python3
"""Writes the cases beside it: questions about names, ends and values that spec/APPLY.md answers, on
bases and adapters of a few tensors. The values are small integers, and merged.safetensors is what
spec/apply.py makes of them, so it comes from the text and not from loratool. A case that must be
refused has the number of its rule instead.

    make.py LORATOOL     the tool converts the adapters, which are PEFT's files, to .lora

Needs Python 3.11 and zstandard 0.25.0. Two runs write the same bytes."""
import json, os, shutil, struct, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "spec"))
import apply
from applying.compare import answers_of
from cases import CASES

def safetensors(tensors, path):
    """Writes F32 tensors: numbers, or a shape and the numbers are 1, 2, 3, … by turns of 13."""
    header, body = {}, b""
    for name, (shape, values) in sorted(tensors.items()):
        n = 1
        for d in shape: n *= d
        values = values or [float((i * 5 + len(name)) % 13 - 6) or 7.0 for i in range(n)]
        data = struct.pack(f"<{n}f", *values)
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f: f.write(len(text).to_bytes(8, "little") + text + body)

def tensors(given):
    return {n: x if type(x) is tuple else (x, None) for n, x in given.items()}

def write_json(path, value):
    with open(path, "w", newline="\n") as f: f.write(json.dumps(value, indent=2) + "\n")

def factors(layers):
    """PEFT's names and the shapes of A and B, for a module and (m, n), of rank 2."""
    out = {}
    for module, shape in layers.items():
        prefix = "base_model.model." + module
        m, n = shape[:2]
        out[prefix + ".lora_A.weight"], out[prefix + ".lora_B.weight"] = [2, n], [m, 2]
        if "bias" in shape: out[prefix + ".lora_B.bias"] = [m]
    return out

def write(case, tool):
    path = os.path.join(HERE, case["name"])
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path + "/base"), os.makedirs(path + "/adapter")
    for file, given in case["base"].items():
        if file.endswith(".json"): write_json(f"{path}/base/{file}", given)
        else: safetensors(tensors(given), f"{path}/base/{file}")
    saved = {"base_model.model." + n: x for n, x in case.get("saved", {}).items()}
    safetensors(tensors(factors(case.get("layers", {})) | saved),
                path + "/adapter/adapter_model.safetensors")
    write_json(path + "/adapter/adapter_config.json", {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": sorted(case.get("layers", {})),
        "peft_version": "0.21.2"} | case.get("config", {}))
    record = {"comment": case["comment"], "options": case.get("options", {})}
    if "file" in case: record["file"] = case["file"]
    with tempfile.TemporaryDirectory() as scratch:
        lora = os.path.join(scratch, "a.lora")
        subprocess.run([tool, "convert", "-q", path + "/adapter", "-o", lora], check=True)
        base = os.path.join(path, "base", case.get("file", ""))
        try:
            out = apply.merge(base, [lora], [1.0], answers_of(record))
            assert "refused" not in case, case["name"]
            apply.write(dict(sorted(out.items())), path + "/merged.safetensors")
        except apply.Invalid as e:
            assert str(e).startswith(case.get("refused", "?") + ":"), f"{case['name']}: {e}"
            record["refused"] = case["refused"]
    write_json(path + "/case.json", record)

if __name__ == "__main__":
    for case in CASES: write(case, os.path.abspath(sys.argv[1]))
    print(len(CASES), "cases")
