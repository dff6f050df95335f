"""The forms of layers, sections 5 to 8 of APPLY.md, and what they want and change."""
import json, math, re
from itertools import permutations
from reader import BITS, need
from .components import apply_slices
from .divided import apply_divided, divided
from .exact import FLOATS, Matrix, dominant, leading
from .files import Tensor, as_matrix, check_pairs, leaf, parent, tail
from .methods import applies, apply, rescales
from .text import CONV1D, CONV1D_MODELS, IN_TURNS, PARAMETERS, PARTS, TRANSPOSED_EXPERTS

# Section 5: the form of a layer, and the names that it wants

EXPERT = re.compile(r"(|.*\.)experts\.(?:(gate_up_proj|down_proj)s\.(\d+)|(\d+)\.([^.]+))")
def of_expert(module):
    """Of one expert of a stack, 8.2: Y, e, P, i, p, or nothing."""
    m = EXPERT.fullmatch(module)
    if not m: return None
    Y = m[1] + "experts."
    if m[2]: return Y, int(m[3]), m[2], 0, 1
    return of_part(Y, m[5], int(m[4]))
def of_part(Y, word, e=None):
    if word in PARTS: return Y, e, word, 0, 1
    for P, ways in PARTS.items():
        for way in ways:
            if word in way: return Y, e, P, way.index(word), len(way)
def way(base, X, P):
    """The parts of P where the base has modules for it, otherwise nothing."""
    if P not in PARTS or base.ends_with(f"{leaf(X)}.{P}"): return None
    return next((w for w in PARTS[P] if base.ends_with(f"{leaf(X)}.0.{w[0]}.weight")), None)

def form(l, a, base):
    A, B = l.A, l.B
    if l.kind.startswith("expert"): return "stacked"
    if l.kind == "other" and A and B:
        if "expert-factors" in a.features and len(A.shape) == len(B.shape) == 3: return "each"
        if a.features & {"merged-linear", "bdlora", "qalora"}: return "compact"
    if l.kind == "linear":
        one = of_expert(l.module)
        if one and not base.ends_with(tail(l.module, 3) + ".weight") \
                and base.ends_with(tail(one[0] + one[2], 2)): return "one"
        l.division = divided(l.module, base)
        if l.division: return "divided"
    need(l.kind in ("linear", "embedding", "conv") or applies(l), "R90", f"{l.module} of the kind {l.kind}")
    return "plain"

def target_name(l, base):
    M = l.module
    if base.ends_with(tail(M, 2) + ".weight"): return M + ".weight"
    N = M.replace(".base_layer.", ".", 1)
    within = base.ends_with(tail(N, 2) + ".in_proj_weight")
    return N + (".in_proj_weight" if within and not base.ends_with(tail(N, 2) + ".weight")
                else ".weight")

def group_experts(a, base):
    """8.1: the groups, and for each of their layers the parameter of the order of the text."""
    stacked = [l for l in a.layers if l.form == "stacked"]
    for l in stacked:
        l.depth, l.X = 0, l.module
        while l.X.endswith(".base_layer"): l.X, l.depth = parent(l.X), l.depth + 1
        need(len(l.A.shape) == len(l.B.shape) == 2 and l.A.shape[0] == l.B.shape[1] > 0
             and l.A.shape[0] % l.rank == 0, "R105", l.module)
        l.E, l.n, l.m = l.A.shape[0] // l.rank, l.A.shape[1], l.B.shape[0]
    a.groups = []
    for X in dict.fromkeys(l.X for l in stacked):
        group = sorted((l for l in stacked if l.X == X), key=lambda l: -l.depth)
        paths = [w for f, w in a.requires if f == "experts"]
        leaves = [leaf(w) for w in paths if ("." + X).endswith("." + parent(w))]
        leaves = [*dict.fromkeys(leaves)]
        leaves = [p for p in PARAMETERS if p in leaves] + [p for p in leaves if p not in PARAMETERS]
        need(len(leaves) == len(group), "R104", f"{X} has {len(group)} layers for {leaves}")
        a.groups.append((X, group, leaves))

def expert_names(X, P, E, base):
    parts = way(base, X, P)
    if not parts: return [f"{X}.{P}"]
    return [f"{X}.{e}.{part}.weight" for e in range(E) for part in parts]

def wanted_by_layer(l, a, base):
    if l.form in ("plain", "compact"):
        l.wanted = [target_name(l, base)]
        if "bias" in l.roles: l.wanted.append(l.wanted[0].removesuffix("weight") + "bias")
    elif l.form == "divided": l.wanted = l.division.wanted
    elif l.form == "one": l.wanted = ["".join(of_expert(l.module)[0:3:2])]
    elif l.form == "each":
        Y, _, word = l.module.rpartition("experts.")
        l.path = of_part(Y + "experts.", word)
        need(l.path and (not Y or Y[-1] == "."), "R110", f"{l.module} is no path of experts")
        Y, _, P, i, p = l.path
        l.E = max(l.A.shape[0], l.B.shape[0])
        l.parts = way(base, Y[:-1], P)
        if l.parts and p > 1: l.parts = l.parts[i:i + 1]
        l.wanted = [f"{Y}{e}.{part}.weight" for e in range(l.E) for part in l.parts] if l.parts \
            else [Y + P]

def wanted_names(a, base):
    out = []
    for l in a.layers:
        l.form = form(l, a, base)
        need(l.form == "plain" or not l.pairs, "R140", l.module)
        if l.form != "plain":
            need({*l.roles} == {"A", "B"} and not a.covers("dora", l, named=False), "R91", l.module)
        wanted_by_layer(l, a, base)
        if l.form != "stacked": out += l.wanted
    group_experts(a, base)
    for X, group, leaves in a.groups:
        E = max(l.E for l in group)
        for P in leaves: out += expert_names(X, P, E, base)
    return out + [target for _, target, _, _ in a.beside]

QUERIES = {"q_proj", "k_proj"}
PAIRS_BY_MODEL = dict.fromkeys(["llama", "mistral", "gemma", "gemma2"], True) | \
                 dict.fromkeys(["qwen2", "qwen3", "phi3"], False)

def decide_pairs(a, base):
    """What rotary-by-model means."""
    modules = [where for f, where in a.requires if f == "rotary-by-model"]
    need(not modules or a.own or base.type in PAIRS_BY_MODEL, "R145", base.type)
    if not a.own and not PAIRS_BY_MODEL.get(base.type): return
    for where in modules: check_pairs(a, where)
    for l in a.layers: need(l.form == "plain" or not l.pairs, "R140", l.module)

def check_queries(a):
    """R146: what changes q and k in a base with the names of Meta's code."""
    plain = [l for l in a.layers if l.kind == "linear" and l.form == "plain"
             and {*l.roles} <= {"A", "B", "alpha"} and not a.features & {"pissa", "olora"}]
    right = {x for l in plain for x in l.wanted}
    for x in a.names: need(x in right or leaf(x.rpartition(".")[0]) not in QUERIES, "R146", x)

class Layers:
    """The layers of an adapter; what they add goes to the changes."""
    def __init__(self, a, changes):
        self.a, self.changes, self.term = a, changes, changes.term
        self.base, self.answers = changes.base, changes.answers

    # Section 6

    def votes(self, leaves):
        total = 0
        for l in self.a.layers:
            name = self.a.names.get(l.module + ".weight")
            if l.kind != "linear" or leaf(l.module) not in leaves or not name: continue
            m, n = l.B.shape[0], l.A.shape[1]
            shape = self.base.tensors[name].shape
            if m != n: total += (shape == [n, m]) - (shape == [m, n])
        return total
    def transposed(self, l):
        """Whether a square weight is."""
        word, model = leaf(l.module), self.base.type
        if self.votes({word}): return self.votes({word}) > 0
        if model: return model in CONV1D_MODELS and word in CONV1D
        if word not in CONV1D: return False
        if self.votes(CONV1D): return self.votes(CONV1D) > 0
        if "linear-input" in self.answers: return self.answers["linear-input"] == "1"
        need(self.a.orientation != "nxm", "R94", f"{l.module} is square")
        return False

    def plain(self, l):
        if applies(l):
            if getattr(l, "slices", None): return apply(l, self.changes, l.slices)
            name = self.a.names[l.wanted[0]]
            apply(l, self.changes, [(name, 0, as_matrix(self.base.tensors[name].shape)[0])])
            return rescales(l, self.changes, name, self.a.weight)
        if getattr(l, "slices", None):
            need(not l.pairs, "R140", l.module)
            return apply_slices(l, self.changes)
        name = self.a.names[l.wanted[0]]
        shape = self.base.tensors[name].shape
        A, B = l.A.matrix(), l.B.matrix()
        m, n = B.size()[0], A.size()[1]
        own = self.a.own and leaf(l.module) in QUERIES # METHODS.md, section 6
        if l.pairs != own:
            d = self.base.head
            need(d, "R141", l.module), need(d % 2 == 0 and m % d == 0, "R142", f"{m} by {d}")
            order = [x - x % d + 2 * (x % (d // 2)) + x % d // (d // 2) for x in range(m)]
            B = B.take(order if l.pairs else [order.index(x) for x in range(m)])
        if l.kind == "linear":
            if len(shape) > 2: fits, turned = shape == [m, n] + [1] * (len(shape) - 2), False
            elif m == n: fits, turned = shape == [m, n], shape == [m, n] and self.transposed(l)
            else: fits, turned = shape in ([m, n], [n, m]), shape == [n, m]
            need(fits, "R93", f"{name} is {shape}, the factors are for {m}x{n}")
        elif l.kind == "embedding":
            need(shape == [n, m], "R95", f"{name} is {shape}, the factors are for {n}x{m}")
            turned = True
        else:
            a1, b1, d = l.A.shape, l.B.shape, len(shape)
            same = d == len(a1) and shape == [m] + a1[1:]
            flat = a1[2:] == [1] * (len(a1) - 2) and shape == [m] + a1[1:2]
            need(len(a1) == len(b1) > 2 and b1[1:] == [l.rank] + [1] * (len(b1) - 2)
                 and a1[0] == l.rank and (same or flat), "R96", f"{name} {shape} {a1} {b1}")
            turned = False
        S = 2 * l.S if ".base_layer." in l.module and "out-proj-twice" in self.answers else l.S
        self.term(l, name, S, B, A, transposed=turned)
        if "bias" in l.roles:
            bias, values = self.base.tensors[self.a.names[l.wanted[1]]], l.roles["bias"].matrix()
            values = Matrix([[x for r in values.rows for x in r]], values.e)
            need(bias.shape == [m] == [values.size()[1]], "R97", f"{l.wanted[1]} is {bias.shape}")
            self.term(l, self.a.names[l.wanted[1]], l.S, Matrix([[1]], 0), values)
        rescales(l, self.changes, name, self.a.weight, turned)
        if self.a.features & {"pissa", "olora"}: self.residual(l, name, turned)

    # Section 7

    def compact(self, l):
        name = self.a.names[l.wanted[0]]
        shape, A, B = self.base.tensors[name].shape, l.A.matrix(), l.B.matrix()
        need(len(l.A.shape) == 2 and (len(l.B.shape) == 2 or len(l.B.shape) == 3
             and l.B.shape[2] == 1) and len(shape) == 2, "R101", f"{name} {shape}")
        method = next(f for f in ("merged-linear", "bdlora", "qalora") if f in self.a.features)
        terms = {"merged-linear": self.merged, "bdlora": self.blocks, "qalora": self.pooled}[method]
        turned, found = False, terms(l, A, B, *shape)
        if not found: turned, found = True, terms(l, A, B, *shape[::-1])
        elif shape[0] == shape[1]: turned = self.transposed(l)
        need(found, "R101", f"{name} is {shape}, A {A.size()}, B {B.size()}")
        for t in found: self.term(l, name, *t, transposed=turned)
    def blocks(self, l, A, B, m, n):
        (rows, c), (b, w) = A.size(), B.size()
        if b != m: return None
        if c < n and n % c == 0 and w == rows and rows % (n // c) == 0:
            q = rows // (n // c)
            return [(l.S, B.columns(range(k * q, k * q + q)), A.take(range(k * q, k * q + q)), 0,
                     k * c) for k in range(n // c)]
        if c == n and w < rows and rows % w == 0 and m % (rows // w) == 0:
            h = m // (rows // w)
            return [(l.S, B.take(range(k * h, k * h + h)), A.take(range(k * w, k * w + w)),
                     k * h, 0) for k in range(rows // w)]
        return [(l.S, B, A)] if c == n and w == rows else None
    def pooled(self, l, A, B, m, n):
        (rows, c), (b, w) = A.size(), B.size()
        if b != m or w != rows or n % c: return None
        g = n // c
        need(g > 1, "R102", l.module)
        return [(l.S * (c / g), B, A.columns([j // g for j in range(n)]))]
    def merged(self, l, A, B, m, n):
        (rows, c), (b, w) = A.size(), B.size()
        where = next(w for f, w in self.a.requires if f == "merged-linear")
        try: enabled = json.loads(where.removeprefix("enable_lora = "))
        except ValueError: enabled = None
        need(where.startswith("enable_lora = ") and type(enabled) is list
             and all(type(x) is bool for x in enabled), "R103", where)
        e, p = sum(enabled), len(enabled)
        if not e or rows % w or b % e or n != c: return None
        q, h = rows // w, b // e
        if b % q or m != p * h: return None
        first = [i * h for i, on in enumerate(enabled) if on]
        return [(l.S, B.take([t]), A.take(range(t * q // b * w, (t * q // b + 1) * w)),
                 first[t // h] + t % h, 0) for t in range(b)]

    # Section 8

    def layout(self, X, P, E):
        """E₀, d1, d2 of a parameter, whether it is a single matrix, and the names of its tensors,
        those of an expert one after the other."""
        names = [self.a.names[x] for x in expert_names(X, P, E, self.base)]
        parts = way(self.base, X, P)
        if not parts:
            shape = self.base.tensors[names[0]].shape
            single = len(shape) == 2
            need(single or len(shape) == 3, "R106", f"{names[0]} is {shape}")
            return [1] * single + shape, single, names
        first = [n.rpartition(".0.")[::2] for n in names[:len(parts)]]
        shapes = [self.base.tensors[n].shape for n in names]
        need(all(len(s) == 2 and s == shapes[0] for s in shapes), "R106", names[0])
        count = 0
        while f"{first[0][0]}.{count}.{first[0][1]}" in self.base.tensors: count += 1
        names = [f"{front}.{e}.{back}" for e in range(count) for front, back in first]
        return [count, len(parts) * shapes[0][0], shapes[0][1]], False, names
    def group(self, X, group, leaves):
        """Which layer is for which parameter."""
        E = max(l.E for l in group)
        layouts = {P: self.layout(X, P, E) for P in leaves}
        def fits(l, P):
            (E0, d1, d2), single, _ = layouts[P]
            return l.E == E0 and ((l.n, l.m) == (d2, d1) or (l.n, l.m) == (d1, d2) and not single)
        orders = [o for o in permutations(leaves) if all(fits(l, P) for l, P in zip(group, o))]
        usual = tuple(leaves)
        one = len({(l.rank, l.s) for l in group}) == 1
        if usual in orders and (len(orders) == 1 or {*leaves} <= {*PARAMETERS}): order = usual
        else:
            need(len(orders) == 1 and one, "R106", f"{X}: {len(orders)} orders of {leaves} fit")
            order = orders[0]
        for l, P in zip(group, order): l.layout = layouts[P]
    def reads_first(self, l, witnesses):
        (_, d1, d2), single, _ = l.layout
        if single: return False
        if d1 != d2: return l.n == d1
        model = self.base.type
        if "expert-input" in self.answers: return self.answers["expert-input"] == "1"
        if l.kind == "expert-second": return False
        need(len(witnesses) < 2, "R107", f"{l.module}: the witnesses differ")
        if witnesses: return True in witnesses
        need(l.kind != "expert" and model != "qwen3_vl_moe", "R107", l.module)
        if l.kind == "expert-first": return True
        need(model and model not in TRANSPOSED_EXPERTS, "R107", l.module)
        return l.kind == "expert-outputs"
    def stacked(self):
        for X, group, leaves in self.a.groups: self.group(X, group, leaves)
        layers = [l for _, group, _ in self.a.groups for l in group]
        witnesses = {l.n == l.layout[0][1] for l in layers
                     if not l.layout[1] and l.layout[0][1] != l.layout[0][2]}
        for l in layers:
            first, ((E, d1, _), single, names) = self.reads_first(l, witnesses), l.layout
            A, B, r, p = l.A.matrix(), l.B.matrix(), l.rank, len(names) // E
            for e in range(E):
                slowest = "expert-slowest" in self.answers
                Ae = A.take(range(e * r, e * r + r))
                Be = B.columns([e * r + k if slowest else k * E + e for k in range(r)])
                L, R = (Ae.T(), Be.T()) if first else (Be, Ae)
                if len(names) == 1 and (single or len(self.base.tensors[names[0]].shape) == 3):
                    self.term(l, names[0], l.S, L, R, expert=None if single else e)
                    continue
                h = d1 // p
                for k in range(p):
                    self.term(l, names[e * p + k], l.S, L.take(range(k * h, k * h + h)), R)
    def square_expert(self, l):
        model = self.base.type
        if "expert-input" in self.answers: return self.answers["expert-input"] == "1"
        need(model and model != "qwen3_vl_moe", "R107", l.module)
        return model in TRANSPOSED_EXPERTS
    def one(self, l, path=None, pairs=None):
        """8.2, and 8.3 on a stack: pairs of A and B by their experts."""
        Y, e, P, i, p = path or of_expert(l.module)
        name, rule = self.a.names[Y + P], "R108" if not path else "R110"
        shape = self.base.tensors[name].shape
        pairs = pairs or {e: (l.A.matrix(), l.B.matrix())}
        A, B = next(iter(pairs.values()))
        m, n = B.size()[0], A.size()[1]
        need(len(shape) == 3 and shape[1:] in ([p * m, n], [n, p * m]) and max(pairs) < shape[0]
             and (not path or len(pairs) == shape[0]), rule, f"{name} is {shape}")
        turns = p > 1 and self.base.type in IN_TURNS
        need(not turns or "expert-turns" in self.answers, "R109", l.module)
        first = self.square_expert(l) if p * m == n else shape[1] == n
        for e, (A, B) in pairs.items():
            if not turns: self.term(l, name, l.S, B, A, i * m, 0, first, e)
            else:
                for k in range(m): self.term(l, name, l.S, B.take([k]), A, k * p + i, 0, first, e)
    def each(self, l):
        def split(t, e):
            k, size = (e if t.shape[0] > 1 else 0), t.count() // t.shape[0] * BITS[t.dtype] // 8
            return Tensor(t.dtype, t.shape[1:], t.data[k * size:k * size + size], "").matrix()
        A, B, E = l.A.shape, l.B.shape, l.E
        need(A[0] in (1, E) and B[0] in (1, E) and A[1] == B[2], "R110", f"{l.module}: {A}, {B}")
        pairs = {e: (split(l.A, e), split(l.B, e)) for e in range(E)}
        if not l.parts: return self.one(l, l.path, pairs)
        names = [self.a.names[x] for x in l.wanted]
        p, front, back = len(l.parts), *names[0].rpartition(".0.")[::2]
        need(f"{front}.{E}.{back}" not in self.base.tensors, "R110", f"more than {E} experts")
        need(l.path[4] == 1 or self.base.type not in IN_TURNS or "expert-turns" in self.answers, "R109", l.module)
        for e, (A, B) in pairs.items():
            h = B.size()[0] // p
            for k in range(p):
                name = names[e * p + k]
                need(self.base.tensors[name].shape == [h, A.size()[1]] and h * p == B.size()[0],
                     "R110", f"{name} is {self.base.tensors[name].shape}")
                self.term(l, name, l.S, B.take(range(k * h, k * h + h)), A)

    # Section 10

    def residual(self, l, name, turned):
        t, feature = self.base.tensors[name], "pissa" if "pissa" in self.a.features else "olora"
        W = t.matrix()
        need(l.kind == "linear" and "multihead-attention" not in self.a.features and t.dtype != "F64"
             and W.finite() and not (feature == "olora" and turned), "R118", name)
        need(not any(x[0].recompute == name for x in self.changes.of[name].terms), "R119", name)
        l.recompute = name
        if l.rank >= min(W.size()):
            n = W.size()[1]
            L, R = W, Matrix([[int(i == j) for j in range(n)] for i in range(n)], 0)
        else: L, R = (dominant if feature == "pissa" else leading)(W, l.rank)
        self.term(l, name, -self.a.weight if feature == "pissa" else -l.S, L, R)

    # Sections 5 and 9: all changes of an adapter

    def difference(self, target, t):
        need(t.dtype in FLOATS, "R139", f"{target}: {t.dtype}")
        d = next(d for d in self.a.differences if d.tensor is t)
        name = self.a.names.get(target)
        whole = name and [(name, 0, as_matrix(self.base.tensors[name].shape)[0])]
        apply(d, self.changes, getattr(d, "slices", None) or whole)
    def collect(self):
        kinds = {"plain": self.plain, "compact": self.compact, "one": self.one, "each": self.each,
                 "divided": lambda l: apply_divided(l, self.a, self.base, self.term)}
        if self.a.features & {"pissa", "olora"}:
            need("recompute-residual" in self.answers, "R117", self.a.features)
            need(all(l.form == "plain" for l in self.a.layers), "R118", "a layer of another form")
        self.stacked()
        for l in self.a.layers:
            if l.form in kinds: kinds[l.form](l)
        for name, change in self.changes.of.items():
            mine = [t for t in change.terms if t[0] in self.a.layers]
            areas = [(l, r, r + L.size()[0], c, c + R.size()[1]) for l, _, L, R, r, c in mine]
            areas = [*dict.fromkeys(areas)]
            for k, x in enumerate(areas):
                for y in areas[:k]:
                    apart = x[1] >= y[2] or y[1] >= x[2] or x[3] >= y[4] or y[3] >= x[4]
                    need(x[0] is y[0] or apart, "R92", name)
        for action, target, rows, t in self.a.beside:
            if action == "difference":
                self.difference(target, t)
                continue
            name = self.a.names[target]
            base = self.base.tensors[name]
            need(t.dtype in FLOATS or action == "replace" and t.dtype == base.dtype == "I64",
                 "R115", f"{target}: {t.dtype}")
            if action == "replace":
                need(t.shape == base.shape, "R114", f"{name} is {base.shape}, saved is {t.shape}")
                self.changes.of[name].replace.append((self.a, t))
            else:
                need(len(t.shape) == len(base.shape) == 2 and t.shape[1] == base.shape[1]
                     and all(i < base.shape[0] for i in rows), "R116", f"{rows} of {base.shape}")
                self.changes.of[name].rows.append((self.a, rows, t))
