"""Names of image and video models: step 5, by NAMES.md, whose tables come out of the text."""
import functools, math, os, re
from collections import defaultdict
from reader import need
from .exact import Matrix
from .files import as_matrix
from .methods import applies, apply, inputs, size
from .text import marked, table

TEXT = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "NAMES.md")).read()
NUMBER = "(0|[1-9][0-9]*)"
PREFIXES = [(marked(r[0])[0], r[1], int(r[2]), r[3] == "yes", marked(r[4])[0])
            for r in table(TEXT.split("## 2. Tables")[0])]

def expanded(line, sections):
    """The lines of a table without sections: a native name, and its parts."""
    line, _, name = line.partition(" {")
    left, _, right = line.partition(" = ")
    right = right or left
    if not name: return [(left, right.split(" + "))]
    inner = [x for l in sections[name[:-1]] for x in expanded(l, sections)]
    return [(f"{left}.{l}", [f"{right}.{p}" for p in r]) for l, r in inner]

@functools.cache
def compiled(pattern, flat):
    if flat: pattern = pattern.replace(".", "_")
    return re.compile(re.escape(pattern).replace(r"\#", NUMBER))
def matched(pattern, name, flat=False):
    """The numbers of a name of the pattern, or nothing."""
    m = compiled(pattern, flat).fullmatch(name)
    return None if m is None else m.groups()
def filled(pattern, numbers):
    found = iter(numbers)
    return re.sub("#", lambda _: next(found), pattern)

class Architecture:
    def __init__(self, text):
        sections, at = defaultdict(list), ""
        for line in text.strip().split("\n"):
            if line[:1] == "[": at = line[1:-1]
            elif line and line[:2] != "# ": sections[at].append(line)
        self.kind = sections[""][1].split()[1]
        self.lines = []
        for line in sections[""][2:]:
            for left, parts in expanded(line, sections):
                parts = [re.fullmatch(r"(.*?)(?:\[(\d)/(\d)\])?(:n)?", p).groups() for p in parts]
                self.lines.append((left, [(p, int(i or 1), int(k or 1), n) for p, i, k, n in parts]))
        self.names = [*{x: 0 for left, ps in self.lines for x in (left, *(p[0] for p in ps))}]
    def knows(self, name): return any(matched(x, name) is not None for x in self.names)
    def flat(self, x):
        return [filled(p, n) for p in self.names if (n := matched(p, x, True)) is not None]
    def places(self, name, rows, columns):
        """The lines in force that the name is on, filled in."""
        out = []
        for left, parts in self.lines:
            for side in dict.fromkeys((left, *(p[0] for p in parts))):
                n = matched(side, name)
                if n is None: continue
                two = [ps for l, ps in self.lines if l == left]
                known = type(rows) is type(columns) is int
                if len(two) > 1 and known and (parts is two[1]) != (rows == len(two[1]) * columns):
                    continue
                out.append((filled(left, n), [(filled(p, n), i, k, m) for p, i, k, m in parts]))
        return out

TABLES = [Architecture(t) for t in re.findall("```\n(.*?)```", TEXT, re.S)]

class Component:
    def __init__(self, row):
        self.text, self.kind, self.number, self.flat, self.name = row or ("", "", 0, False, "")
        self.weights, self.inputs, self.vectors = {}, {}, {}
    def columns(self, w, size, n):
        """Whether a weight has the columns of a layer, or the inputs of a scaling."""
        return n is None or (self.inputs[w] if type(n) is tuple else size[1],) == \
            (n if type(n) is tuple else (n,))
    def settle(self):
        known = [sum(t.knows(m) for m in self.weights) for t in TABLES]
        best = max(known, default=0)
        self.table = TABLES[known.index(best)] if 2 * best > len(self.weights) else None
        if not self.kind and self.table:
            text = self.table.kind == "text_encoder"
            self.kind = "text encoder" if text else "denoiser"
            self.name, self.number = self.table.kind, 0
    def names(self, x, flat):
        out = [x]
        if self.kind == "text encoder": out.append(("text_model_" if flat else "text_model.") + x)
        if flat:
            for y in [*out]:
                out += [m for m in self.weights if m.replace(".", "_") == y]
                if self.table: out += self.table.flat(y)
        return dict.fromkeys(out)
    def slices(self, name, m, n):
        """The choices of slices for a name: lists of a weight, a first row, and a number of rows."""
        if name in self.weights:
            w, size = self.weights[name]
            fits = m in (None, size[0]) and self.columns(w, size, n)
            return [((w, 0, size[0]),)] if fits else []
        out = []
        for left, parts in self.table.places(name, m, n) if self.table else []:
            mine = parts if name == left else sorted((p for p in parts if p[0] == name),
                                                     key=lambda p: p[1])
            found = [self.held(p, left, parts) for p in mine]
            if all(found) and all(self.columns(f[0], f[3], n) for f in found) \
                    and m in (None, sum(f[2] for f in found)):
                out.append(tuple(f[:3] for f in found))
        return out
    def held(self, part, left, parts):
        if part[0] in self.weights:
            w, size = self.weights[part[0]]
            rows = size[0] // part[2]
            return None if size[0] % part[2] else (w, (part[1] - 1) * rows, rows, size)
        if left not in self.weights: return None
        w, size = self.weights[left]
        marks, first = sum(bool(p[3]) for p in parts), 0
        rest = size[0] - marks * size[1]
        if rest < 0 or len(parts) > marks and rest % (len(parts) - marks): return None
        for p in parts:
            rows = size[1] if p[3] else rest // (len(parts) - marks)
            if p == part: return w, first, rows, size
            first += rows

def row_of(name, base=False):
    row = next((r for r in PREFIXES if name.startswith(r[0])), None)
    return None if base and row and row[3] else row

def components(base):
    out = {}
    for name, t in base.tensors.items():
        last = name.rpartition(".")[2]
        c = out.setdefault(row_of(name, True), Component(row_of(name, True)))
        if last == "weight" and len(t.shape) == 1:
            c.vectors[name.removesuffix(".weight")[len(c.text):]] = name, t.shape[0]
        if len(t.shape) < 2 or not (name.endswith(".weight") or last == "in_proj_weight"): continue
        c.inputs[name] = inputs(t.shape)[0]
        module = name.removesuffix("_weight" if last == "in_proj_weight" else ".weight")
        c.weights[module[len(c.text):]] = name, as_matrix(t.shape)
    for c in out.values(): c.settle()
    return [c for c in out.values() if c.weights]

def found(part, layers, c):
    out = {}
    for l in layers:
        choices = {s for x in c.names(l.module[len(part.text):], part.flat)
                   for s in c.slices(x, *size(l))}
        if l.kind == "difference":  # of a norm too
            x = l.module[len(part.text):]
            choices |= {((w, 0, 1),) for v, (w, n) in c.vectors.items()
                        if n == l.tensor.count() and x == (v.replace(".", "_") if part.flat else v)}
        if len(choices) != 1: return None
        out[l] = choices.pop()
    return out

def step5(a, base):
    """Gives each layer its slices; false if the step is not for this adapter."""
    if any(l.form != "plain" for l in a.layers) or a.taken("replace") or a.taken("rows"): return False
    parts, all_of = defaultdict(list), components(base)
    for l in [*a.layers, *a.differences]: parts[row_of(l.module)].append(l)
    if not any(parts) and not any(c.kind for c in all_of): return False
    for row, layers in parts.items():
        p = Component(row)
        near, far = [], []
        for c in all_of:
            if p.kind and c.kind and p.kind != c.kind: continue
            apart = p.number and c.number and p.number != c.number
            if not apart: near.append(c)
            elif p.kind == c.kind == "text encoder": far.append(c)
        results = [f for c in near if (f := found(p, layers, c))] \
            or [f for c in far if (f := found(p, layers, c))]
        need(len(results) == 1, "R130", f"{p.text or layers[0].module}: {len(results)} components")
        for l, slices in results[0].items(): place(l, slices, a, base)
    return True

def place(l, slices, a, base):
    w, _, rows = slices[0]
    whole = len(slices) == 1 and as_matrix(base.tensors[w].shape)[0] == rows
    if l.kind == "difference":
        if l.word == "bias": slices = [(x.removesuffix("weight") + "bias", *s) for x, *s in slices]
        need(all(x in base.tensors for x, *_ in slices), "R130", f"{slices}")
        l.slices = slices
        return
    need(whole or not {"magnitude", "input_magnitude"} & {*l.roles}, "R131", l.module)
    biases = [x.removesuffix("weight") + "bias" for x, *_ in slices]
    if "bias" in l.roles: need(all(b in base.tensors for b in biases), "R130", biases)
    l.slices = None if whole else [*slices]
    if whole:
        l.wanted = [w, *biases] if "bias" in l.roles else [w]
        l.module = w.removesuffix(".weight").removesuffix("_weight")
        a.names.update({x: x for x in l.wanted})

def apply_slices(l, changes):
    """Terms of a layer whose slices are rows of weights."""
    A, B, first = l.A.matrix(), l.B.matrix(), 0
    for w, row, rows in l.slices:
        if l.kind == "embedding": L, R = A.T().take(range(first, first + rows)), B.T()
        else: L, R = B.take(range(first, first + rows)), A
        changes.term(l, w, l.S, L, R, row)
        if "bias" in l.roles:
            v = l.roles["bias"].matrix()
            flat = [x for r in v.rows for x in r]
            bias = w.removesuffix("weight") + "bias"
            values = Matrix([flat[first:first + rows]], v.e)
            changes.term(l, bias, l.S, Matrix([[1]], 0), values, 0, row)
        first += rows
