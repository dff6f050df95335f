#!/usr/bin/env python3
"""Merges .lora adapters into a base by APPLY.md, NAMES.md and METHODS.md alone, with FORMAT.md: every number is an integer
times a power of two, and is rounded once. Tables of names and models come out of the text itself. A
model to read next to the text: all files are in memory.

    apply.py BASE ADAPTER.lora... -o OUT.safetensors [-w W]... [--ANSWER [VALUE]]...
    apply.py --check LORATOOL testdata/peft
    apply.py --vectors testdata/vectors/apply

The second form merges all fixtures with both programs and compares every tensor. The third one
checks what comes out of the vectors."""
import argparse, hashlib, json, sys
from reader import Invalid, need
from applying.changes import Changes
from applying.compare import ANSWERS, check
from applying.components import step5
from applying.ends import Ends, add_tensors, check_tie, fold, grow, tie
from applying.files import Adapter, Base, check_adapter
from applying.layers import Layers, check_queries, decide_pairs, wanted_names
from applying.names import OWN, translate
from applying.vectors import check_vectors

def merge(base_path, adapter_paths, weights, answers):
    base = Base(base_path)
    adapters = [Adapter(p, w) for p, w in zip(adapter_paths, weights)]
    ids = [a.content for a in adapters]
    need(len({*ids}) == len(ids) or "again" in answers, "R79", ids)
    for a in adapters:
        check_adapter(a, answers)
        for name, digest in a.fingerprints.items():
            t = next((t for t in base.tensors.values() if t.name == name), None)
            line = t and f"{t.dtype} {','.join(map(str, t.shape))}\n".encode()
            need(not t or "any-base" in answers or hashlib.sha256(line + t.data).hexdigest()
                 == digest, "R83", name)
    if "add-tensors" in answers:
        for a in adapters: add_tensors(base, a, Ends(base, adapters))
    ends = tie(base, adapters, answers.get("tied"))
    if "grow-vocabulary" in answers: grow(base, adapters, ends)
    changes = Changes(base, answers)
    for a in adapters:
        wanted = wanted_names(a, base)
        try:
            a.names, used = translate(wanted, base)
            a.own = used.rename is OWN
            if a.own: check_queries(a)
        except Invalid as e:
            if not str(e).startswith("R88") or not step5(a, base): raise
        decide_pairs(a, base)
        if base.alias: fold(a, base, ends)
        Layers(a, changes).collect()
        if ends.tie == "yes" and not answers.get("tied"): check_tie(a, ends)
    for name, c in changes.of.items(): changes.check(name, c)
    if getattr(ends, "kept", None):
        base.tensors[ends.folded] = ends.kept
        if ends.embedding in changes.of: changes.of[ends.folded] = changes.of[ends.embedding]
    for name, c in changes.of.items(): changes.values(name, c, base.tensors[name])
    return {t.name: t for t in base.tensors.values()}

def write(tensors, path):
    header, offset = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": t.dtype, "shape": t.shape,
                        "data_offsets": [offset, offset := offset + len(t.data)]}
    b = json.dumps(header).encode()
    b += b" " * (-len(b) % 8)
    with open(path, "wb") as f:
        f.write(len(b).to_bytes(8, "little") + b + b"".join(t.data for t in tensors.values()))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("base"), p.add_argument("adapter", nargs="*"), p.add_argument("-o", "--out")
    p.add_argument("--check", action="store_true"), p.add_argument("--vectors", action="store_true")
    p.add_argument("-w", "--weight", action="append", type=float, default=[])
    for name, values in ANSWERS.items():
        if values: p.add_argument("--" + name, choices=values)
        else: p.add_argument("--" + name, action="store_const", const="")
    args = p.parse_args()
    if args.vectors: sys.exit(bool(check_vectors(merge, args.base)))
    if args.check: sys.exit(bool(check(merge, args.base, args.adapter[0])))
    given = {n: getattr(args, n.replace("-", "_")) for n in ANSWERS}
    weights = args.weight or [1.0] * len(args.adapter)
    write(merge(args.base, args.adapter, weights, {n: v for n, v in given.items()
                                                  if v is not None}), args.out)
if __name__ == "__main__":
    try: main()
    except Invalid as e: sys.exit(str(e))
