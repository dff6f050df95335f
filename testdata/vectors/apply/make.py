#!/usr/bin/env python3
"""Writes the vectors of applying: bases, adapters and index.txt. Needs nothing but Python 3.11.

    make.py          writes what is not there, and refuses to change what is
    make.py --check  checks only: files, kinds of error, a case and a neighbour for every rule"""
import hashlib
import json
import os
import re
import sys

import kit
import task, rounding, names, layers, compact, experts, beside, ends, images, methods, rotary, divided  # noqa: E401, F401

HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = os.path.join(HERE, "..", "..", "..", "spec")

# Rules that no file breaks: README.md says why.
DUTIES = {"R78", "R124", "R132"}


def kinds():
    found = {}
    for name in ("FORMAT.md", "APPLY.md", "NAMES.md", "METHODS.md"):
        with open(os.path.join(SPEC, name), encoding="utf-8") as f:
            found |= dict(re.findall(r"^\*\*(R\d+)\.\*\* .*\[(\w+)\]$", f.read(), re.M))
    return found


def files_and_index():
    files, named, kind = {}, {}, kinds()

    def file(folder, name, data, end):
        if (folder, data) not in named:
            path = f"{folder}/{name}{end}"
            i = 2
            while path in files:
                path, i = f"{folder}/{name}-{i}{end}", i + 1
            named[folder, data], files[path] = path, data
        return named[folder, data]

    index = ["# README.md explains this. make.py writes it."]
    for name, rules, base, config, adapters, answers, want, without, any_nan, comment, near in kit.CASES:
        stem = name.removeprefix("ok-")
        lines = [f"case: {name}", "expect: " + (kind[rules[0]] if rules else "ok")]
        if rules:
            lines.append("rule: " + " ".join(rules))
        lines.append("base: " + file("bases", stem, kit.safetensors(base), ".safetensors"))
        if config is not None:
            lines.append("config: " + json.dumps(config))
        lines += [f"adapter: {file('adapters', stem, a, '.lora')} {weight!r}"
                  for a, weight in adapters]
        lines += [f"answer: {a.replace('=', ' ')}" for a in answers]
        if any_nan:
            lines.append("nan: any")
        for n, t in want.items():
            shape = ",".join(map(str, t.shape))
            digest = t.data().hex() if near else hashlib.sha256(t.data(any_nan)).hexdigest()
            lines.append(f"{'near' if near else 'tensor'}: {n} {t.dtype} [{shape}] {digest}")
        lines += [f"without: {n}" for n in without]
        if comment:
            lines.append("comment: " + comment)
        index += ["", *lines]
    files["index.txt"] = ("\n".join(index) + "\n").encode()
    return files


def check_rules():
    cases = [c[0] for c in kit.CASES]
    assert len(cases) == len({*cases}), [c for c in cases if cases.count(c) > 1]
    for n in [74, 75, 76, *range(78, 133), *range(137, 145)]:
        if f"R{n}" not in DUTIES:
            assert any(c.startswith(f"r{n}-") for c in cases), f"no case breaks R{n}"
        if n not in (78, 132):
            assert any(c.startswith(f"ok-r{n}-") for c in cases), f"R{n} has no neighbour"


def main():
    files, here = files_and_index(), set()
    for folder in ("bases", "adapters"):
        os.makedirs(os.path.join(HERE, folder), exist_ok=True)
        here |= {f"{folder}/{n}" for n in os.listdir(os.path.join(HERE, folder))}
    for path, data in files.items():
        full = os.path.join(HERE, path)
        if os.path.exists(full):
            with open(full, "rb") as f:
                old = f.read()
            if old != data and (path != "index.txt" or "--check" in sys.argv):
                sys.exit(f"{path} has other bytes; a better vector gets another name")
            if old == data:
                continue
        elif "--check" in sys.argv:
            sys.exit(f"{path} is missing")
        with open(full, "wb") as f:
            f.write(data)
    if here - {*files}:
        sys.exit(f"no case has {sorted(here - {*files})}")
    check_rules()
    print(f"{len(kit.CASES)} cases, {len(files)} files, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()
