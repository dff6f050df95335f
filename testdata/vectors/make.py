#!/usr/bin/env python3
"""Writes the vectors and index.txt; see README.md.

    make.py           writes what is not there; an existing vector that would come out differently stays, and is an error
    make.py --check   runs spec/reader.py and zstd over all vectors and tells where they disagree with index.txt
"""
import hashlib
import os
import re
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = os.path.join(HERE, "..", "..", "spec")
sys.path[:0] = [HERE, SPEC]

TOP = """# Test vectors of the .lora format, made by make.py. Records are separated by an empty line. README.md explains the keys.
"""


def write():
    import broken
    import manifests
    import methods
    import restoring
    import valid
    from kit import VECTORS
    for module in (valid, broken, manifests, restoring, methods):
        module.add()
    wrong, seen = 0, {}
    for v in VECTORS:
        path = os.path.join(HERE, v.file)
        assert seen.setdefault(v.file, v.data) is v.data, f"{v.file} twice"
        if not os.path.exists(path):
            with open(path, "wb") as f:
                f.write(v.data)
        elif open(path, "rb").read() != v.data:
            print(f"{v.file} would change: a vector is never edited, give the new one another name", file=sys.stderr)
            wrong += 1
    for name in sorted(set(os.listdir(HERE)) - set(seen)):
        if name.endswith(".lora"):
            print(f"{name} is not made any more", file=sys.stderr)
            wrong += 1
    if not wrong:
        VECTORS.sort(key=lambda v: (not v.file.startswith("ok-"), int(re.sub(r"\D.*", "", v.file[1:]) or 0), v.file, bool(v.rule)))
        with open(os.path.join(HERE, "index.txt"), "w", encoding="utf-8", newline="\n") as f:
            f.write(TOP + "".join("\n" + v.record() for v in VECTORS))
        print(f"{len(VECTORS)} records, {len(seen)} files, {sum(map(len, seen.values()))} bytes")
    return wrong


def index():
    """The records of index.txt, every value a list."""
    out = []
    for part in open(os.path.join(HERE, "index.txt"), encoding="utf-8", newline="\n").read().split("\n\n")[1:]:
        record = {}
        for line in part.strip("\n").split("\n"):
            k, _, v = line.partition(": ")
            record.setdefault(k, []).append(v)
        out.append(record)
    return out


def check():
    import kit
    import reader
    wrong, rules, rows = 0, {}, set()

    def complain(record, text):
        nonlocal wrong
        wrong += 1
        print(f"{record['file'][0]}: {text}", file=sys.stderr)

    def run(data, stage):
        m, parts, content, _ = reader.read(data)
        tensors = [(a["name"], m["tensors"][i], parts[i]) for a in m["adapters"] for i in sorted(reader.references(a))]
        said = [f"{a}/{t['name']} {t['dtype']} {reader.canonical(t['shape']).decode()} {reader.sha(b)}" for a, t, b in tensors]
        files = reader.files(m, parts) if stage == "restore" else {}
        restored = [f"{x['name']} {reader.sha(files[x['name'][:-7]])}" for x in m["attachments"] if x["name"][:-7] in files and
                    x["name"].endswith("source.safetensors.header")]
        return [content], said, restored

    defaults = dict(reader.LIMITS)
    for r in index():
        data = open(os.path.join(HERE, r["file"][0]), "rb").read()
        expect, stage = r["expect"][0], r.get("stage", ["restore"])[0]
        due = r.get("rule", ["ok"])[0].split()
        reader.LIMITS.update(defaults)
        for o in r.get("options", []):
            reader.LIMITS.update((k, int(n)) for k, n in (x.split("=") for x in o.split()))
        if hashlib.sha256(data).hexdigest() != r["sha256"][0]:
            complain(r, "sha256 is not the file's")
        start = time.time()
        try:
            got, said = "ok", run(data, stage)
        except reader.Invalid as e:
            got, said = str(e).split(":")[0], str(e)
        if time.time() - start > 600:  # a bomb, not a slow machine
            complain(r, f"took {time.time() - start:.0f} s")
        if stage == "apply":
            due = ["ok"]  # the reader does not apply
        if got not in due:
            complain(r, f"reader.py says {said}, due is {due}")
        if got != "ok":
            if "-v" in sys.argv:
                print(r["file"][0], said)
        elif "content" in r and (said[0], said[1]) != (r["content"], r.get("tensor", [])):
            complain(r, f"reader.py finds {said}")
        elif expect == "ok" and said[2] != r.get("restored", []):
            complain(r, f"reader.py restores {said[2]}")
        if stage in ("restore", "apply") and expect != "ok":
            run(data, "verify")
        if expect == "ok" and (p := subprocess.run(["zstd", "-t", "-q"], input=data, capture_output=True)).returncode:
            complain(r, p.stderr.decode())
        if expect != "ok":
            rules[r["rule"][0].split()[0]] = True
        rows.update(int(x) for x in " ".join(r.get("rows", [])).split())
    texts = [open(os.path.join(SPEC, name), encoding="utf-8").read() for name in ("FORMAT.md", "METHODS.md")]
    for n, kind in re.findall(r"^\*\*(R\d+)\.\*\*.*\[(\w+)\]$", "\n".join(texts), re.M):
        if int(n[1:]) > 136:
            continue  # of applying: testdata/vectors/apply
        if n not in rules:
            complain({"file": [n]}, "no vector")
        if kit.kind(n) != kind:
            complain({"file": [n]}, f"kit.py says {kit.kind(n)}, the spec {kind}")
    print(f"{len(index())} records, {wrong} wrong; hostile-files.md rows without a vector:", *sorted(set(range(1, 89)) - rows))
    return wrong


if __name__ == "__main__":
    sys.exit(bool(check() if "--check" in sys.argv else write()))
