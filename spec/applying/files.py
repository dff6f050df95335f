"""The base and the adapters, sections 1 and 2 of APPLY.md."""
import json, math, os, re, struct
from collections import defaultdict
from reader import BITS, need, read
from .exact import FLOATS, WORD, Matrix, numbers
from .methods import Difference, roles
from .text import FEATURES, WEIGHT_FILES

class Tensor:
    def __init__(self, dtype, shape, data, name):
        self.dtype, self.shape, self.data, self.name = dtype, [*shape], data, name
    def bits(self): return [*struct.unpack(f"<{self.count()}{WORD[BITS[self.dtype]]}", self.data)]
    def count(self): return math.prod(self.shape)
    def same(self, other):
        return (self.dtype, self.shape, self.data) == (other.dtype, other.shape, other.data)
    def matrix(self, columns=None):
        values, e = numbers(self.dtype, self.data)
        n = columns or as_matrix(self.shape)[1]
        return Matrix([values[i:i + n] for i in range(0, len(values), n or 1)], e)

def as_matrix(shape):
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
def leaf(p): return p.rpartition(".")[2]
def parent(p): return p.rpartition(".")[0]
def tail(p, k): return ".".join(p.split(".")[-k:])
def numbered(p): return any(re.fullmatch("[0-9]+", s) for s in p.split("."))
def plain(name):
    out = {"", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
    return ".".join(s for s in name.split(".") if s not in out)

def safetensors(path):
    b = open(path, "rb").read()
    n = int.from_bytes(b[:8], "little")
    for name, t in json.loads(b[8:8 + n]).items():
        if name != "__metadata__":
            i, j = t["data_offsets"]
            yield name, Tensor(t["dtype"], t["shape"], b[8 + n + i:8 + n + j], name)

def weight_files(folder):
    """The files of a base, section 2."""
    found = [f + x for f in WEIGHT_FILES for x in ("", ".index.json")
             if os.path.exists(os.path.join(folder, f + x))]
    need(len(found) == 1, "section 2", f"{folder} has the weights {found}")
    if found[0] in WEIGHT_FILES: return found
    return sorted({*json.load(open(os.path.join(folder, found[0])))["weight_map"].values()})

class Base:
    def __init__(self, path):
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        files = [path]
        if path == folder: files = [os.path.join(path, f) for f in weight_files(path)]
        config = os.path.join(folder, "config.json")
        self.tensors = {plain(name): t for f in files for name, t in safetensors(f)}
        self.config = json.load(open(config)) if os.path.exists(config) else None
        c = self.config or {}
        text = c.get("text_config") or {}
        self.type, self.classes = c.get("model_type") or "", c.get("architectures") or []
        self.vocabulary = max(c.get("vocab_size") or 0, text.get("vocab_size") or 0)
        def head(c):
            d, n, h = (next((c[x] for x in k if type(c.get(x)) is int and c[x] > 0), 0) for k in (
                ["head_dim"], ["hidden_size", "n_embd", "n_embed"], ["num_attention_heads", "n_head"]))
            return d or (n // h if h > 0 and n % h == 0 else 0)
        self.head = head(text) or head(c) # METHODS.md, section 6
        def tie(c):
            first = "tie_embedding" if self.type.startswith("lfm2") else "tie_word_embeddings"
            return c.get(first, c.get("tie_word_embeddings"))
        self.text_tie, self.tie = tie(text), tie(c)
        if self.tie is None: self.tie = self.text_tie
        self.unwrap()
        self.alias = {}
        self.changed()
    def unwrap(self):
        """NAMES.md, section 4."""
        inner = defaultdict(list)
        for x in self.tensors:
            y = re.sub(r"(\.base_layer)+(?=\.[^.]*$)", "", x)
            if y != x and "." in y and y not in self.tensors: inner[y].append(x)
        self.tensors.update({y: self.tensors[xs[0]] for y, xs in inner.items() if len(xs) == 1})
    def changed(self):
        names = [*self.tensors, *self.alias]
        self.endings = {tail(n, k) for n in names for k in range(1, n.count(".") + 2)}
    def ends_with(self, p): return p in self.endings
    def has(self, name): return name in self.tensors or name in self.alias
    def of(self, name): return self.tensors[self.alias.get(name, name)]

# The adapter

class Layer:
    def __init__(self, record, tensors, weight):
        self.module, self.kind, self.rank = record["module"], record["kind"], record["rank"]
        self.roles = {role: tensors[i] for role, i in record["roles"].items()}
        self.A, self.B = self.roles.get("A"), self.roles.get("B")
        def value(x):
            return float(x) if type(x) is int else struct.unpack(">d", bytes.fromhex(x))[0]
        root = {"alpha/r": float(self.rank), "alpha/sqrt(r)": math.sqrt(self.rank)}
        s = record["scaling"]
        self.s = value(record["scale"]) if s == "fixed" else value(record["alpha"]) / root[s]
        self.S = weight * self.s
        self.recompute, self.pairs = None, False

class Adapter:
    def __init__(self, path, weight):
        m, parts, content, _ = read(open(path, "rb").read())
        need(len(m["adapters"]) == 1, "use", "a bundle: name one of its adapters")
        a = m["adapters"][0]
        tensors = [Tensor(t["dtype"], t["shape"], data, t["name"])
                   for t, data in zip(m["tensors"], parts)]
        self.content, self.weight, self.orientation = content, weight, a["orientation"]
        self.method, self.fingerprints = a["method"], a["base"]["fingerprints"]
        self.requires = [(r["feature"], r["where"]) for r in a["requires"]]
        self.features = {f for f, _ in self.requires}
        self.layers = [Layer(l, tensors, weight) for l in a["layers"]]
        self.beside = [(b["action"], b.get("target"), b.get("rows"), tensors[b["tensor"]])
                       for b in a["beside"]]
        self.differences = [Difference(target, t, weight) for action, target, _, t in self.beside
                            if action == "difference"]
        self.copies, self.own, self.names = False, False, {}
    def covers(self, feature, l, named=True):
        everywhere = {"", "use_dora"}
        return any(f == feature and (w in everywhere or named and w == l.module)
                   for f, w in self.requires)
    def taken(self, action): return [b for b in self.beside if b[0] == action]

def check_pairs(a, where):
    named = [l for l in a.layers if l.module == where and l.kind == "linear"]
    need(named and not {"bias", "magnitude", "input_magnitude"} & {*named[0].roles}, "R140", where)
    named[0].pairs = True

def check_adapter(a, answers):
    need(a.layers or any(b[0] != "opaque" for b in a.beside), "R80", "nothing to apply")
    for f, where in a.requires:
        need(FEATURES.get(f, "refuses") != "refuses", "R70", f"the feature {f}, {where}")
    need(not a.method.startswith("other:") or a.method == "other:lycoris", "R70", f"the method {a.method}")
    factors = {l.module for l in a.layers}
    for f, where in a.requires:
        if f in ("dora", "lora-bias") and where not in ("", "use_dora"):
            need(where in factors, "R74", f"{f} for {where}, which has no layer")
        if f == "rotary-pairs": check_pairs(a, where)
    need(a.method != "dora" or "dora" in a.features, "R74", "the method dora without the feature")
    for l in a.layers:
        if l.kind in ("linear", "embedding", "conv") and a.covers("dora", l):
            need("magnitude" in l.roles, "R74", f"{l.module} has no magnitude")
        if ("lora-bias", l.module) in a.requires:
            need("bias" in l.roles, "R74", f"{l.module} has no bias")
        need("magnitude" not in l.roles or a.covers("dora", l), "R75", l.module)
        need("bias" not in l.roles or a.covers("lora-bias", l), "R75", l.module)
        need({*l.roles} <= roles(l.kind), "R76", [*l.roles])
        need(math.isfinite(l.S), "R84", f"{l.module}: {l.S}")
        for role, t in l.roles.items():
            if role == "axis": continue
            need(t.dtype in FLOATS, "R85", f"{role} of {l.module}: {t.dtype}")
            need("allow-nonfinite" in answers or t.matrix().finite(), "R86",
                 f"{role} of {l.module}")
    left_out = {w for f, w in a.requires if f in ("velora", "monteclora", "unloaded")}
    a.beside = [b for b in a.beside if b[0] != "opaque" or b[3].name not in left_out]
    for action, target, rows, t in a.beside:
        need(action != "opaque", "R111", t.name), need(action == "difference" or a.weight == 1, "R112", a.weight)
        need("allow-nonfinite" in answers or t.dtype not in FLOATS or t.matrix().finite(), "R86",
             t.name)
