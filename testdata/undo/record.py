"""Writes undo records from spec/UNDO.md, wrong ones too, on top of ../vectors/builder.py. Shares no code with a reader of them.

A Merge is what a merge has left and what was there before; record(merge) is its record of version 1, record(merge, 2) that of
version 2, and every keyword replaces a part of it.
"""
import copy
import hashlib
import json
import math
import struct
import zlib
from fractions import Fraction
from functools import lru_cache

import builder

FLOATS = {"BF16": (8, 7), "F16": (5, 10), "F32": (8, 23), "F64": (11, 52)}  # bits of exponent and fraction
WORD = {8: "B", 16: "H", 32: "I", 64: "Q"}
PIECE = 2**26


def sha(b):
    return hashlib.sha256(b).hexdigest()


def crc32c(b):
    """The remainder of the bits, least significant first, by Castagnoli's polynomial; ones come in and out inverted."""
    crc = 2**32 - 1
    for x in b:
        crc ^= x
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 2**32 - 1


assert crc32c(b"123456789") == 0xE3069283


def pack(dtype, xs):
    return struct.pack(f"<{len(xs)}{WORD[builder.BITS[dtype]]}", *xs)


def unpack(dtype, b):
    return struct.unpack(f"<{len(b) * 8 // builder.BITS[dtype]}{WORD[builder.BITS[dtype]]}", b)


# --- section 1

@lru_cache
def value(x, dtype):
    """The number that has these bits."""
    e, f = FLOATS[dtype]
    field, fraction = x >> f & 2**e - 1, x % 2**f
    assert field < 2**e - 1
    v = fraction + 2**f * (field > 0)
    return (-1)**(x >> e + f) * v * Fraction(2)**(max(field, 1) - 2**(e - 1) + 1 - f)


def nearest(v, dtype):
    """The bits of RN(v); +0 for zero."""
    e, f = FLOATS[dtype]
    bias = 2**(e - 1) - 1
    a = abs(v)

    def log2(a):
        n = a.numerator.bit_length() - a.denominator.bit_length()
        return n if a >= Fraction(2)**n else n - 1
    if not a:
        return 0
    step = Fraction(2)**(max(log2(a), 1 - bias) - f)
    a = round(a / step) * step  # of a Fraction: ties to even
    if a >= 2**(bias + 1):
        bits = (2**e - 1) << f
    elif a < Fraction(2)**(1 - bias):
        bits = int(a / Fraction(2)**(1 - bias - f))
    else:
        bits = (log2(a) + bias << f) + int((a / Fraction(2)**log2(a) - 1) * 2**f)
    return bits | (v < 0) << e + f


def order(x, bits):
    return x ^ 2**bits - 1 if x >> bits - 1 else x ^ 1 << bits - 1


def at_order(o, bits):
    return o ^ 1 << bits - 1 if o >> bits - 1 else o ^ 2**bits - 1


def step(x, d, bits):
    return at_order((order(x, bits) + d) % 2**bits, bits)


def zigzag(w, p, bits):
    d = (order(w, bits) - order(p, bits) + 2**(bits - 1)) % 2**bits - 2**(bits - 1)
    return 2 * d if d >= 0 else -2 * d - 1


# --- what was merged

class Adapter:
    """Plain LoRA of linear layers: layers are {module: (A, B)}, matrices as (dtype, rows of bits); saved are (target, dtype, shape,
    bytes) of tensors that take the place of others."""

    def __init__(self, name, alpha, layers, weight=1.0, saved=()):
        self.name, self.alpha, self.layers, self.weight = name, alpha, layers, weight
        self.rank = len(next(iter(layers.values()))[0][1])
        n = len(layers)
        self.tensors = [builder.tensor(f"base_model.model.{module}.lora_{'AB'[i]}.weight", dtype, (len(rows), len(rows[0])),
                                       b"".join(pack(dtype, row) for row in rows))
                        for i in (0, 1) for module, ab in sorted(layers.items()) for dtype, rows in [ab[i]]]
        beside = [{"action": "replace", "target": target, "tensor": 2 * n + i} for i, (target, *_) in enumerate(saved)]
        self.tensors += [builder.tensor("base_model.model." + target, dtype, shape, b) for target, dtype, shape, b in saved]
        records = [builder.layer(module, {"A": i, "B": n + i}, self.rank, alpha=alpha) for i, module in enumerate(sorted(layers))]
        self.content = builder.content_id(builder.model([builder.adapter(layers=records, beside=beside)], self.tensors)).hex()

    def scale(self):
        return self.weight * (self.alpha / self.rank)

    def files(self):
        from safetensors_header import header
        config = {"base_model_name_or_path": None, "bias": "none", "lora_alpha": self.alpha, "peft_type": "LORA", "r": self.rank,
                  "target_modules": sorted(self.layers), "task_type": None}
        body = header([(r["name"], (r, b)) for r, b in self.tensors]) + b"".join(b for _, b in self.tensors)
        return {"adapter_config.json": json.dumps(config, indent=1).encode() + b"\n", "adapter_model.safetensors": body}


class Tensor:
    """merged are the bytes after the merge. ds are residuals, over and over, that say what was there before; a tensor without any was
    not changed. terms are (adapter, module); without any the prediction is `same`. The merge has added all rows but so many, and the
    tensor itself if there were none."""

    def __init__(self, name, dtype, shape, merged, ds=None, terms=(), block=None, rows=None):
        self.name, self.dtype, self.shape, self.merged, self.terms, self.bits = name, dtype, list(shape), merged, terms, builder.BITS[dtype]
        self.added, self.was = rows == 0, list(shape) if rows is None else [rows, *shape[1:]]
        self.kept = merged if rows is None else merged[:math.prod(self.was) * self.bits // 8]
        self.changed, self.base, self.block = ds is not None, self.kept, block or max(1, len(self.kept) * 8 // self.bits)
        if self.changed:
            self.predicted = self.predict() if terms else unpack(dtype, self.kept)
            self.base = pack(dtype, [step(p, ds[i % len(ds)], self.bits) for i, p in enumerate(self.predicted)])

    def predict(self):
        rows, columns = self.shape
        out = []
        for i, x in enumerate(unpack(self.dtype, self.merged)):
            e, f = FLOATS[self.dtype]
            sigma = sum(Fraction(a.scale()) * self.product(a, module, *divmod(i, columns)) for a, module in self.terms)
            finite = x >> f & 2**e - 1 < 2**e - 1
            out.append(x if sigma == 0 or not finite else nearest(value(x, self.dtype) - sigma, self.dtype))
        return out

    def is_transposed(self, adapter, module):
        (_, a), (_, b) = adapter.layers[module]
        return [len(b), len(a[0])] != self.shape

    def product(self, adapter, module, i, j):
        (da, a), (db, b) = adapter.layers[module]
        if self.is_transposed(adapter, module):
            i, j = j, i
            assert [len(a[0]), len(b)] == self.shape
        return sum(value(b[i][k], db) * value(a[k][j], da) for k in range(adapter.rank))


class File:
    """One file: tensors in the order of their bytes, and the metadata of its header before and after. order has the names of the
    tensors in the order of their bytes before, where that is another one."""

    def __init__(self, name, tensors, before=None, after=None, order=None):
        from safetensors_header import header
        self.name, self.tensors = name, tensors
        there = [t for t in tensors if not t.added]
        there.sort(key=lambda t: (order or [t.name]).index(t.name))
        entries = [(t.name, ({"dtype": t.dtype, "shape": t.shape}, t.merged)) for t in tensors]
        was = [(t.name, ({"dtype": t.dtype, "shape": t.was}, t.kept)) for t in there]
        self.before, self.after = (header(e, meta=meta, pad=0 if meta is None else 7) for e, meta in ((was, before), (entries, after)))
        self.data = b"".join(t.merged for t in tensors)
        self.merged, self.base = self.after + self.data, self.before + b"".join(t.base for t in there)

    def rest(self):
        ranges, pos = [b""], 0
        for t in self.tensors:
            if t.changed:
                ranges.append(self.data[pos + len(t.kept):pos + len(t.merged)])
            else:
                ranges[-1] += self.data[pos:pos + len(t.merged)]
            pos += len(t.merged)
        return [zlib.crc32(r[i:i + PIECE]) for r in ranges for i in range(0, len(r), PIECE)]


class Merge:
    """side are (name, bytes before, bytes after) of files beside the weights."""

    def __init__(self, name, files, adapters, side=()):
        self.name, self.files, self.adapters, self.side = name, files, adapters, side
        self.changed = [(i, t) for i, f in enumerate(files) for t in f.tensors if t.changed]


# --- sections 2 to 4

class Block:
    """A payload and its entry of the table; lengths of None are those of the payload."""

    def __init__(self, t, start, version):
        part = slice(start * t.bits // 8, (start + t.block) * t.bits // 8)
        self.bits, self.lengths = t.bits, None
        self.after = zlib.crc32(t.kept[part])
        self.before = hashlib.sha256(t.base[part]).digest() if version == 1 else crc32c(t.base[part]).to_bytes(4, "little")
        self.zs = [zigzag(w, p, t.bits) for w, p in zip(unpack(t.dtype, t.base[part]), t.predicted[start:start + t.block])]
        self.marks, self.sizes, self.escapes, self.is_planar, zeros = [], [], [], False, 0
        for z in self.zs:
            if z == 0:
                zeros += 1
                continue
            while zeros >= 80:
                n = next(n for n in range(6, -1, -1) if zeros >= 80 * 4**n)
                self.marks.append(240 + n)
                zeros -= 80 * 4**n
            self.marks.append(zeros + 80 * min(z - 1, 2))
            if z > 2:
                self.sizes.append(min(z - 3, 255))
            if z >= 258:
                self.escapes += z.to_bytes(t.bits // 8, "little")
            zeros = 0
        if len(self.marks + self.sizes + self.escapes) > len(self.zs) * t.bits // 8:
            self.planar()

    def planar(self):
        self.marks, self.escapes, self.is_planar = [], [], True
        self.sizes = [z >> 8 * p & 255 for p in range(self.bits // 8 - 1, -1, -1) for z in self.zs]

    def payload(self):
        return bytes(self.marks + self.sizes + self.escapes)

    def entry(self):
        lengths = self.lengths or (2**32 - 1 if self.is_planar else len(self.marks), len(self.sizes), len(self.escapes))
        return struct.pack("<4I", *lengths, self.after) + self.before


def describe(m, version):
    def identity(b):
        return {"bytes": len(b), "sha256": sha(b)}

    def term(t, a, module):
        s = a.scale()
        return {"adapter": m.adapters.index(a), "module": module, "scale": int(s) if s == int(s) else s, "transposed": t.is_transposed(a, module)}
    side = [{"name": name, "before": identity(before), "after": identity(after)} for name, before, after in m.side]
    return ({"side": side} if side else {}) | {"undo": version, "tool": "make.py", "reading": {},
            "adapters": [{"name": a.name, "content": a.content, "weight": a.weight} for a in m.adapters],
            "files": [{"name": f.name, "before": identity(f.before), "after": identity(f.after), "rest": f.rest()} for f in m.files],
            "tensors": [{"name": t.name, "file": i, "dtype": t.dtype, "shape": t.was, "block": t.block,
                         "predict": "subtract" if t.terms else "same", "terms": [term(t, *x) for x in t.terms]} for i, t in m.changed]}


def stock(b):
    return builder.stock(b) if b else builder.frame(b)


def record(m, version=1, edit=None, text=None, blocks=None, streams=None, attached=None, manifest=None, **more):
    """The record, where each of these changes what it gets in place, or returns what takes its place:
    edit      the description
    text      its bytes
    blocks    {index of a tensor: a function of its list of Block}
    streams   [(name, dtype, shape, bytes)]
    attached  {name: bytes}
    manifest  that of the container
    more      goes to builder.lora
    """
    def changed(f, v):
        out = f(v) if f else None
        return v if out is None else out
    d = changed(edit, copy.deepcopy(describe(m, version)))
    names, all_streams = [f"headers/{i}" for i, f in enumerate(m.files) if f.before != f.after], []
    for i, (_, t) in enumerate(m.changed):
        bs = [Block(t, start, version) for start in range(0, len(t.kept) * 8 // t.bits, t.block)]
        bs = changed((blocks or {}).get(i), bs)
        s = b"".join(b.payload() for b in bs) + b"".join(b.entry() for b in bs)
        all_streams.append((str(i), "U8", [len(s)], s))
    all_streams = sorted(changed(streams, all_streams), key=lambda s: s[1] != "U8")  # one dtype after the other
    files = dict(zip(names, [f.before for f in m.files if f.before != f.after]))
    files |= {f"side/{i}": before for i, (_, before, _) in enumerate(m.side)}
    files["undo.json"] = changed(text, json.dumps(d, separators=(",", ":"), allow_nan=True).encode())
    files = changed(attached, files)
    model = builder.opaque(*[builder.tensor(name, dtype, shape, b, "raw") for name, dtype, shape, b in all_streams],
                           attachments=sorted(files.items(), key=lambda x: x[0].encode()),
                           method="other:undo", requires=[{"feature": "undo", "where": ""}])
    a = model.manifest["adapters"][0]
    for key in ("method", "requires"):
        a[key] = model.manifest.pop(key)
    model = model.edited(manifest) if manifest else model
    n = len(builder.raw_chunks(model, more.get("log2", 20)))
    return builder.lora(model, **{"manifest_frame": stock, "frames": {i: stock for i in range(n)}} | more)
