"""Writes safetensors headers, wrong ones too."""
import json
import struct


def entry(record, begin, end, **more):
    e = {"dtype": record["dtype"], "shape": record["shape"], "data_offsets": [begin, end]} | more
    return json.dumps({k: v for k, v in e.items() if v is not None}, separators=(",", ":"))


def text(tensors, order=None, meta=None, names={}, space="", pad=0, change={}):
    """tensors are (name, (record, bytes)) in the order of their bytes, order the first characters of the names in the order of
    the keys; names replaces how a name is written, change what entry() is called with."""
    at, members = 0, []
    for name, (record, b) in tensors:
        members.append((name, entry(record, at, at + len(b), **change.get(name, {}))))
        at += len(b)
    if order:
        members.sort(key=lambda x: order.index(x[0][0]))
    if meta is not None:
        members.insert(len(members) // 2, ("__metadata__", json.dumps(meta)))
    out = ",".join(f'{space}"{names.get(n, n)}":{space}{e}' for n, e in members)
    return ("{" + out + space + "}" + " " * pad).encode()


def with_length(t, n=None):
    return struct.pack("<Q", len(t) if n is None else n) + t


def header(tensors, **more):
    return with_length(text(tensors, **more))
