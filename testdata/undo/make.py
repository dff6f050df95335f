#!/usr/bin/env python3
"""Writes the vectors and index.txt; see README.md.

    make.py           writes everything anew
    make.py --check   compares what is there with what would be written, and runs spec/unmerge.py over it
"""
import os
import re
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
SPEC = os.path.join(HERE, "..", "..", "spec")
sys.path[:0] = [HERE, SPEC]
sys.path.append(os.path.join(HERE, "..", "vectors"))

TOP = """# Test vectors of undo records, made by make.py. Records are separated by an empty line. README.md explains the keys.
"""


def made():
    """{path: bytes} of all files but index.txt, and the list of vectors."""
    import broken
    import valid
    from kit_undo import VECTORS, FILES
    for module in (valid, broken):
        module.add()
    return FILES | {v.file: v.data for v in VECTORS}, VECTORS


def index(vectors):
    return (TOP + "".join("\n" + v.record() for v in vectors)).encode()


def tree():
    found = {}
    for folder, folders, names in os.walk(HERE):
        folders[:] = [x for x in folders if x != "__pycache__"]
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), HERE).replace(os.sep, "/")
            if not name.endswith((".py", ".md")):
                with open(os.path.join(folder, name), "rb") as f:
                    found[path] = f.read()
    return found


def write(files):
    for path in sorted(set(tree()) - set(files)):
        os.remove(os.path.join(HERE, path))
    for path, b in files.items():
        os.makedirs(os.path.dirname(os.path.join(HERE, path)), exist_ok=True)
        with open(os.path.join(HERE, path), "wb") as f:
            f.write(b)
    return 0


def verdict(v, folders, files):
    """What spec/unmerge.py says: {file: sha256}, or the number of a rule."""
    import reader
    import unmerge
    from kit_undo import beside
    try:
        adapters = dict(unmerge.peft(os.path.join(HERE, a)) for a in v.adapters)
        out = unmerge.unmerge(folders[v.merged], adapters, v.data, beside(files, v.merged))
        return {name: reader.sha(b) for name, b in out.items()}, ""
    except reader.Invalid as e:
        return str(e).split(":")[0], str(e)


def check(files, vectors):
    from kit_undo import kind, merged
    wrong, found = 0, tree()
    for path in sorted(p for p in set(found) | set(files) if found.get(p) != files.get(p)):
        wrong += 1
        print(f"{path} is not what make.py writes", file=sys.stderr)
    folders = {v.merged: merged(files, v.merged) for v in vectors}
    for v in vectors:
        start = time.time()
        got, said = verdict(v, folders, files)
        due = dict(v.restored) if v.expect == "ok" else v.rules
        if got != due if v.expect == "ok" else got not in due:
            wrong += 1
            print(f"{v.file}: unmerge.py says {said or got}, due is {due}", file=sys.stderr)
        elif "-v" in sys.argv:
            print(f"{v.file}: {said or 'ok'} ({time.time() - start:.1f} s)")
    with open(os.path.join(SPEC, "UNDO.md"), encoding="utf-8") as f:
        rules = re.findall(r"^\*\*(U\d+)\.\*\*.*\[(\w+)\]$", f.read(), re.M)
    for n, word in rules:
        if not any(v.rules[:1] == [n] for v in vectors) or kind(n) != word:
            wrong += 1
            print(f"{n}: no vector, or not {kind(n)} but {word}", file=sys.stderr)
    print(f"{len(vectors)} undo records, {sum(map(len, files.values()))} bytes, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    files, vectors = made()
    files["index.txt"] = index(vectors)
    sys.exit(bool(check(files, vectors) if "--check" in sys.argv else write(files)))
