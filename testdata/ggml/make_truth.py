"""Writes truth.json: SHA-256s of what llama.cpp's C code makes of blocks, as float32, and the blocks
that it makes of numbers.

    python testdata/ggml/make_truth.py LIBGGML_BASE

LIBGGML_BASE is libggml-base.so of llama-cpp-python 0.3.36 (llama.cpp 0c1e57098), built for x86-64
without flags of the processor. The blocks are those of all_types.gguf, and for each type random ones
that the test makes again: SHA-256(name, counter) one after the other, so all codes and all scales,
infinities and NaN among them. Every NaN counts as 0x7fc00000. The numbers are random_rows.
"""
import ctypes
import hashlib
import json
import os
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

HERE = os.path.dirname(os.path.abspath(__file__))
RANDOM_BLOCKS = 4096
RANDOM_ROWS = 1024  # of 256 numbers, of each kind
ENCODED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"]
LIB = ctypes.CDLL(sys.argv[1])
# gguf-py 0.19 does not know the last two.
SIZES = {t.name: n for t, n in GGML_QUANT_SIZES.items()} | {"Q1_0": (128, 18), "Q2_0": (64, 18)}

PLAIN = {
    "F32": lambda b: np.frombuffer(b, np.float32),
    "F16": lambda b: np.frombuffer(b, np.float16).astype(np.float32),
    "BF16": lambda b: (np.frombuffer(b, np.uint16).astype(np.uint32) << 16).view(np.float32),
}


def decode(name, blocks):
    elements, size = SIZES[name]
    n = len(blocks) // size * elements
    values = np.empty(n, np.float32)
    function = getattr(LIB, "dequantize_row_" + name.lower().replace("_k", "_K"))
    function(ctypes.c_char_p(blocks), values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(n))
    return values


def random_bytes(name, n):
    parts = [hashlib.sha256(b"%s %d" % (name.encode(), i)).digest() for i in range((n + 31) // 32)]
    return b"".join(parts)[:n]


def random_rows():
    """Rows of 256 numbers, of each kind as many."""
    w = np.frombuffer(random_bytes("rows", RANDOM_ROWS * 1024), np.uint32).reshape(-1, 256)
    small = (w & 0x807FFFFF | ((w >> 23 & 7) + 120) << 23).view(np.float32)
    signed = (w & 255).astype(np.uint8).view(np.int8).astype(np.float32)
    one = np.where(np.arange(256) == w[:, :1] % 256, small, (w & 1 << 31).view(np.float32))
    return {
        "any bits": w.view(np.float32),
        "below one": small,
        "sixteenths": signed / np.float32(16),
        "few": np.trunc(signed / np.float32(16)),
        "subnormal": (w & 0x807FFFFF).view(np.float32),
        "one": one,
        "constant": np.repeat(small[:, ::32], 32, axis=1),
        "huge": (w & 0x807FFFFF | ((w >> 23 & 3) + 251) << 23).view(np.float32),
        "under powers of two": np.repeat((w & 0xFF800000 | 0x7FFFFF - (w & 63))[:, ::32], 32, axis=1).view(np.float32),
        "around the least scales": (w & 0x807FFFFF | (w >> 23 & 15) << 23).view(np.float32),
    }


def encode(name, rows):
    elements, size = SIZES[name]
    rows = np.ascontiguousarray(rows)
    blocks = ctypes.create_string_buffer(rows.size // elements * size)
    number = {"Q1_0": 41, "Q2_0": 42}.get(name) or int(GGMLQuantizationType[name])
    LIB.ggml_quantize_chunk(number, rows.ctypes.data_as(ctypes.c_void_p), blocks, ctypes.c_int64(0),
                            ctypes.c_int64(rows.shape[0]), ctypes.c_int64(256), None)
    return blocks.raw


def digest(values):
    values = values.copy()
    values[np.isnan(values)] = np.float32("nan")
    return hashlib.sha256(values.tobytes()).hexdigest()


truth = {}
stored = {t.name.split(".")[2].upper(): bytes(t.data) for t in GGUFReader(os.path.join(HERE, "all_types.gguf")).tensors}
for name in list(stored) + ["Q2_0"]:
    if name in PLAIN:
        truth[name] = {"file": digest(PLAIN[name](stored[name]))}
        continue
    blocks = random_bytes(name, RANDOM_BLOCKS * SIZES[name][1])
    truth[name] = {"random": digest(decode(name, blocks))}
    if name in stored:
        values = decode(name, stored[name])
        truth[name] |= {"file": digest(values), "every_97th": [float(v) for v in values[::97]]}
for kind, rows in random_rows().items():
    for name in ENCODED:
        truth[name].setdefault("encoded", {})[kind] = hashlib.sha256(encode(name, rows)).hexdigest()
json.dump(truth, open(os.path.join(HERE, "truth.json"), "w"), indent=1)
