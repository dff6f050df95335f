"""Writes files of adapters and the hashes by which other programs know them.

The definitions, in the words of the programs' own sources:

- sd-scripts, library/train_util.py: sshs_model_hash is the SHA-256 of everything behind the header
  of what safetensors.torch.save returns. sshs_legacy_hash is the first 8 digits of the SHA-256 of
  its 64 KiB from byte 0x100000, where only the entries ss_* are metadata.
- Civitai: AutoV1 is the latter of the file itself, AutoV2 the first 10 digits of the SHA-256 of
  the file, AutoV3 the first 12 digits of the SHA-256 of everything behind its header.
- ModelSpec 1.0.1: modelspec.hash_sha256 is "0x" and the SHA-256 of everything behind the header.

    python3 make.py
"""
import hashlib
import json
import struct
from pathlib import Path

import safetensors.torch
import torch

HERE = Path(__file__).parent
NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}


def pattern(n, seed):
    """n bytes that a test in another language makes in the same way."""
    return bytes((i * i // 7 + i + seed) & 0x3F for i in range(n))


def tensor(dtype, shape, seed):
    size = torch.empty(shape, dtype=dtype)
    data = bytearray(pattern(size.numel() * size.element_size(), seed))
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def raw(t):
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def encode(metadata, tensors):
    """A file with the tensors in their order. Rust's writer orders the metadata at random."""
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for name, t in tensors.items():
        end = len(data) + t.numel() * t.element_size()
        entry = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [len(data), end]}
        header[name] = entry
        data += raw(t)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def behind_header(file):
    return file[8 + struct.unpack("<Q", file[:8])[0]:]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def hashes(file):
    (length,) = struct.unpack("<Q", file[:8])
    metadata = json.loads(file[8:8 + length])["__metadata__"]
    tensors = safetensors.torch.load(file)
    saved = safetensors.torch.save(
        tensors, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    return {
        "file": sha256(file),
        "data": sha256(behind_header(file)),
        "autov1": sha256(file[0x100000:0x110000])[:8],
        "model": sha256(behind_header(saved)),
        "legacy": sha256(saved[0x100000:0x110000])[:8],
    }


def canonical(tensors):
    """The tensors in the order in which safetensors.torch.save writes their data."""
    saved = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", saved[:8])
    entries = json.loads(saved[8:8 + length])
    names = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    return {name: tensors[name] for name in names}


def with_hashes(metadata, tensors):
    found = hashes(encode(metadata, tensors))
    return metadata | {
        "sshs_model_hash": found["model"],
        "sshs_legacy_hash": found["legacy"],
        "modelspec.hash_sha256": "0x" + found["data"],
    }


def adapter():
    module = "lora_te_text_model_encoder_layers_{}_self_attn_{}_proj"
    tensors = {}
    for i, (layer, name) in enumerate([(0, "q"), (0, "v"), (1, "q")]):
        stem = module.format(layer, name)
        down = torch.bfloat16 if i == 1 else torch.float16
        tensors[stem + ".lora_down.weight"] = tensor(down, (2, 8), 3 * i)
        tensors[stem + ".lora_up.weight"] = tensor(torch.float16, (8, 2), 3 * i + 1)
        tensors[stem + ".alpha"] = torch.tensor(1.0, dtype=torch.float32)
    return tensors


METADATA = {
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.author": "Example Corp",
    "modelspec.date": "2024-05-01T12:00:00",
    "modelspec.license": "CC0-1.0",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.title": "Paper cats",
    "modelspec.trigger_phrase": "paprcat style",
    "ss_base_model_version": "sd_v1",
    "ss_epoch": "10",
    "ss_learning_rate": "0.0001",
    "ss_max_train_steps": "1600",
    "ss_network_alpha": "1.0",
    "ss_network_args": '{"conv_dim": "4", "conv_alpha": "1"}',
    "ss_network_dim": "2",
    "ss_network_module": "networks.lora",
    "ss_new_sd_model_hash": sha256(b"the base"),
    "ss_num_epochs": "10",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit",
    "ss_sd_model_name": "v1-5-pruned.safetensors",
    "ss_steps": "1600",
    "ss_tag_frequency": json.dumps({
        "10_paper": {"paper": 40, "cat": 31, "no humans": 12},
        "5_more": {"cat": 20, "origami": 7},
    }),
    "ss_text_encoder_lr": "5e-05",
    "ss_training_comment": "line one\nline two\t\u0001 \u00e9",
    "ss_unet_lr": "None",
}


def main():
    tensors, expected = adapter(), {}

    def keep(name, file):
        (HERE / name).write_bytes(file)
        expected[name] = hashes(file)

    ordered = canonical(tensors)
    keep("kohya.safetensors", encode(with_hashes(METADATA, ordered), ordered))
    by_name = dict(sorted(tensors.items()))
    assert list(by_name) != list(ordered)
    keep("by-name.safetensors", encode(with_hashes(METADATA, by_name), by_name))

    # Too large to keep: a test makes them from the pattern.
    large = canonical({
        "lora_unet_a.lora_down.weight": tensor(torch.float16, (8, 73728), 5),
        "lora_unet_a.lora_up.weight": tensor(torch.float32, (16, 8), 6),
    })
    expected["large"] = hashes(encode({"ss_a": "1\n2", "ss_b": '"\\', "other": "x"}, large))
    long = {"ss_a": "\u00e9\t" * 400_000}  # one entry, so that Rust has no order to choose
    expected["long-metadata"] = hashes(encode(long, canonical(tensors)))
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
