"""Projections that are fused in one module: section 3 of NAMES.md, whose table comes out of the text."""
import os, re
from reader import need
from .files import leaf, tail
from .text import CONV1D, CONV1D_MODELS, marked, table

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "NAMES.md")) as f:
    TEXT = f.read().split("\n## 3. ")[1]
LINES = [(marked(fused)[0], [(marked(p) or [None])[0:1] + [p.rpartition(":")[2] if ":" in p else ""]
                             for p in parts.split(" + ")], runs, marked(bases), others == "any" or marked(others))
         for fused, parts, runs, bases, others in table(TEXT.split("**Other names.**")[0])]

def number(base, *names):
    """The product of members of config.json, 0 if one is missing."""
    c, product = base.config or {}, 1
    for name in names:
        values = (d.get(x) for d in (c.get("text_config") or {}, c) for x in name.split("|"))
        product *= next((v for v in values if type(v) is int and v > 0), 0)
    return product
HEADS = "num_attention_heads|n_head"
MARKS = {"h": [HEADS], "k": ["linear_num_key_heads", "linear_key_head_dim"],
         "m": ["mamba_num_heads", "mamba_head_dim"]}

class Division:
    def __init__(self, line, part, around):
        self.fused, self.parts, self.runs, _, _ = line
        self.part, self.around = part, around
        names = [self.fused] if part is not None else [p for p, _ in self.parts]
        self.wanted = [f"{around}{x}.weight" for x in names]

def divided(module, base):
    """The first line of the table for a module, or nothing."""
    def ends(path): return base.ends_with(tail(path, 2) + ".weight")
    def around(path):
        Y = module.removesuffix(path) if path else None
        return Y if Y != module and (not Y or Y[-1] == ".") else None
    if ends(module): return None
    new = base.type != "chatglm" or (base.config or {}).get("multi_query_attention") is True
    for line in LINES:
        fused, parts, _, bases, others = line
        for i, (p, _) in enumerate(parts):
            Y = around(p)
            if Y is not None and base.type in bases and new and ends(Y + fused): return Division(line, i, Y)
        Y = around(fused)
        if Y is not None and (others is True or base.type in others) \
                and all(p and ends(Y + p) for p, _ in parts): return Division(line, None, Y)

def apply_divided(l, a, base, term):
    d, A, B = l.division, l.A.matrix(), l.B.matrix()
    need(("rotary-pairs", l.module) not in a.requires, "R140", l.module)
    names = [a.names[x] for x in l.wanted]
    shapes = [base.tensors[x].shape for x in names]
    turned = d.part is not None and base.type in CONV1D_MODELS and leaf(d.fused) in CONV1D
    if turned: shapes = [s[::-1] for s in shapes]
    need(all(len(s) == 2 and s[1] == A.size()[1] for s in shapes), "R143", f"{names} {shapes}")
    R, sizes = sum(s[0] for s in shapes), [s[0] for s in shapes]
    if d.part is not None:
        head = {"h": base.head}
        known = [number(base, *MARKS[m]) * head.get(m, 1) if m else None for _, m in d.parts]
        others = [next((x for x in a.layers if x.kind == "linear" and p and x.module == d.around + p), None)
                  for p, _ in d.parts]
        if 0 in known and None not in others:
            known = [x.B.shape[0] for x in others]
        need(0 not in known, "R144", l.module)
        left, shares = R - sum(n or 0 for n in known), known.count(None)
        need(left > 0 and left % shares == 0 if shares else left == 0, "R143", f"{R} rows")
        sizes = [left // shares if n is None else n for n in known]
    need(B.size()[0] == (R if d.part is None else sizes[d.part]), "R143", f"{B.size()} {sizes}")
    g = 1
    if d.runs == "kv":
        need(base.head, "R144", l.module), need(sizes[-1] % base.head == 0, "R143", sizes)
        g = sizes[-1] // base.head
    if d.runs == "key":
        g = number(base, "linear_num_key_heads")
        need(g, "R144", l.module)
    need(g and all(s % g == 0 for s in sizes), "R143", f"{sizes} in {g} runs")
    first = 0
    for t, s in enumerate(s // g for s in sizes):
        for u in range(g):
            fused, own = range(u * R // g + first, u * R // g + first + s), range(u * s, u * s + s)
            if d.part == t: term(l, names[0], l.S, B.take(own), A, fused[0], transposed=turned)
            elif d.part is None: term(l, names[t], l.S, B.take(fused), A, own[0])
        first += s
