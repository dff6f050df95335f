"""The list of vectors: ok() and bad() add to it."""
import hashlib
import json

from kit import kind as kind_of_format

VECTORS, FILES = [], {}
UNSUPPORTED, LIMIT, MISMATCH = {"U2"}, {"U9"}, {"U14", "U15", "U18"}  # kinds of rules other than corrupt


def kind(rule):
    if rule[0] == "R":
        return kind_of_format(rule)
    return "unsupported" if rule in UNSUPPORTED else "limit" if rule in LIMIT else "mismatch" if rule in MISMATCH else "corrupt"


class Vector:
    def __init__(self, name, data, merged, adapters, expect, rules, restored, comment):
        self.file, self.data, self.merged, self.adapters = name + ".undo", data, merged, adapters
        self.expect, self.rules, self.restored, self.comment = expect, rules, restored, comment
        assert self.file not in [v.file for v in VECTORS], self.file

    def record(self):
        out = [("file", self.file), ("merged", self.merged), *(("adapter", a) for a in self.adapters), ("expect", self.expect)]
        out += [("rule", " ".join(self.rules))] if self.rules else []
        out += [("sha256", hashlib.sha256(self.data).hexdigest())]
        out += [("restored", f"{name} {digest}".lstrip()) for name, digest in self.restored]
        return "".join(f"{k}: {v}\n" for k, v in [*out, ("comment", self.comment)])


def put(m, name=None, edit=None, tail=0, side=None):
    """Adds the merged files, changed by edit, and the adapters of a merge, and returns how the index names them. side has other files
    beside the weights than the merge has written."""
    name, parts = name or m.name, {f.name: f.merged for f in m.files}
    if edit:
        edit(parts)
    for file, b in parts.items():
        FILES[f"{name}.safetensors" if file == "" else f"{name}/{file}"] = b[:len(b) - tail]
    if len(m.files) > 1:
        index = {"metadata": {}, "weight_map": {t.name: f.name for f in m.files for t in f.tensors}}
        FILES[f"{name}/model.safetensors.index.json"] = json.dumps(index, indent=1).encode() + b"\n"
    FILES.update({f"{name}/{file}": b for file, b in (side or [(file, after) for file, _, after in m.side])})
    for a in m.adapters:
        FILES.update({f"adapters/{a.name}/{file}": b for file, b in a.files().items()})
    return (f"{name}.safetensors" if "" in parts else name) + (f" {len(parts[''])}" if tail else ""), [f"adapters/{a.name}" for a in m.adapters]


def merged(files, where):
    """The files that the index names: {name: bytes}."""
    path, _, size = where.partition(" ")
    if path in files:
        return {"": files[path].ljust(int(size or 0), b"\0")}
    return {p[len(path) + 1:]: b for p, b in files.items() if p.startswith(path + "/") and p.endswith(".safetensors")}


def beside(files, where):
    """The JSON files beside the weights."""
    return {p[len(where) + 1:]: b for p, b in files.items() if p.startswith(where + "/") and p.endswith(".json")}


def ok(name, m, data, comment, at):
    """A record of the merge m, at where its files are; it takes m back."""
    restored = [(f.name, hashlib.sha256(f.base).hexdigest()) for f in m.files]
    restored += [(name, hashlib.sha256(before).hexdigest()) for name, before, _ in m.side]
    VECTORS.append(Vector("ok-" + name, data, *at, "ok", [], restored, comment))


def bad(name, data, comment, at, rule=None):
    """A record that breaks one rule, which its name begins with; rule lists what may be reported where that is more."""
    rules = (rule or "U" + str(int(name[1:3]))).split()
    VECTORS.append(Vector(name, data, *at, kind(rules[0]), rules, [], comment))
