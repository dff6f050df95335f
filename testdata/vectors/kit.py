"""The list of vectors: ok() and bad() add to it."""
import hashlib
import json

VECTORS = []
LIMIT = {6, 9, 24, 25, 32, 49, 50, 51, 56, 57}  # kinds of rules other than corrupt
UNSUPPORTED = {4, 5, 29, 70, 74, 75, 76}
TASKS = ("open", "read", "stream", "verify", "restore", "apply")


def kind(rule):
    n = int(rule[1:])
    return "truncated" if n == 1 else "limit" if n in LIMIT else "unsupported" if n in UNSUPPORTED else "corrupt"


class Vector:
    def __init__(self, name, data, expect, rule, stage, comment, rows, options, model, restored):
        self.file, self.data, self.expect, self.rule, self.stage = name + ".lora", data, expect, rule, stage
        self.comment, self.rows, self.options, self.model, self.restored = comment, rows, options, model, restored

    def record(self):
        from builder import content_id
        out = [("file", self.file), ("expect", self.expect)]
        out += [("rule", self.rule), ("stage", self.stage)] if self.rule else []
        out += [("options", self.options)] if self.options else []
        out.append(("sha256", hashlib.sha256(self.data).hexdigest()))
        if self.model:
            out.append(("content", content_id(self.model).hex()))
            for a in self.model.manifest["adapters"]:
                for i in sorted([i for x in a["layers"] for i in x["roles"].values()] + [b["tensor"] for b in a["beside"]]):
                    t = self.model.manifest["tensors"][i]
                    shape = json.dumps(t["shape"], separators=(",", ":"))
                    sha = hashlib.sha256(self.model.parts[i]).hexdigest()
                    out.append(("tensor", f"{a['name']}/{t['name']} {t['dtype']} {shape} {sha}"))
        out += [("restored", f"{name} {hashlib.sha256(b).hexdigest()}") for name, b in self.restored]
        out += [("rows", self.rows)] if self.rows else []
        out.append(("comment", self.comment))
        assert not any("\n" in v for _, v in out), self.file
        return "".join(f"{k}: {v}\n" for k, v in out)


def ok(name, data, model, comment, rows="", options="", restored=()):
    """A valid file that says what model says."""
    VECTORS.append(Vector("ok-" + name, data, "ok", "", "", comment, rows, options, model, restored))


def bad(name, data, comment, stage="open", rule=None, rows="", options="", model=None):
    """A file that breaks one rule, which its name begins with; rule lists what may be reported where that is more."""
    rule = rule or "R" + name.split("-")[0][1:]
    VECTORS.append(Vector(name, data, kind(rule.split()[0]), rule, stage, comment, rows, options, model, ()))
