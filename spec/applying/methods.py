"""Layers of the methods of LyCORIS, and differences: METHODS.md. Each is given as one exact matrix,
ΔW/s, times an identity, so that it is a term like any other."""
import math
from reader import METHODS, need
from .exact import Matrix

FREE = {"hadamard": {"alpha", "magnitude", "input_magnitude"},
        "kronecker": {"alpha", "magnitude", "input_magnitude"},
        "output-scaling": {"alpha", "axis"}, "input-scaling": {"alpha", "axis"},
        "linear": {"A", "B", "bias", "magnitude", "alpha", "input_magnitude"},
        "conv": {"A", "B", "bias", "magnitude", "alpha", "input_magnitude", "core"}}

class Difference:
    """A record of section 4, found as a layer is."""
    kind, roles, form, A, B = "difference", {}, "plain", None, None
    recompute = slices = None
    def __init__(self, target, tensor, weight):
        self.target, self.tensor, self.S = target, tensor, weight
        self.module, _, self.word = target.rpartition(".")

def applies(l): return l.kind in METHODS or l.kind == "conv" and "core" in l.roles
def roles(kind):
    """The roles that a layer can have."""
    ways = {role for way in METHODS.get(kind, ()) for role in way}
    return ways | FREE.get(kind, {"A", "B", "bias", "magnitude", "alpha"})

def flat(t): return [x for row in t.matrix().rows for x in row]
def product(A, B):
    columns = [*zip(*B.rows)]
    return Matrix([[sum(x * y for x, y in zip(r, c)) for c in columns] for r in A.rows], A.e + B.e)
def core(a, t, b):
    """Σ a[x, i]·t[x, y, k]·b[y, j] in row i and column j·K + k."""
    r, T, K, te = t.shape[0], flat(t), math.prod(t.shape[2:]), t.matrix().e
    n, m = b.size()[1], a.size()[1]
    rows = [[sum(a.rows[x][i] * T[(x * r + y) * K + k] * b.rows[y][j]
                 for x in range(r) for y in range(r)) for j in range(n) for k in range(K)]
            for i in range(m)]
    return Matrix(rows, a.e + te + b.e)

def stored(l, q):
    """A matrix of the table, in the way in which it is stored."""
    if f"w{q}" in l.roles: return l.roles[f"w{q}"].matrix()
    a, b, t = (l.roles.get(f"{x}") for x in (f"w{q}_a", f"w{q}_b", f"t{q}"))
    return core(a.matrix(), t, b.matrix()) if t else product(a.matrix(), b.matrix())

def delta(l):
    """ΔW/s of a layer other than a scaling."""
    if l.kind == "conv": return core(l.B.matrix().T(), l.roles["core"], l.A.matrix())
    P, Q = stored(l, 1), stored(l, 2)
    if l.kind == "hadamard":
        return Matrix([[x * y for x, y in zip(*rows)] for rows in zip(P.rows, Q.rows)], P.e + Q.e)
    return Matrix([[u * v for u in left for v in right] for left in P.rows for right in Q.rows],
                  P.e + Q.e)

def size(l):
    """The rows and columns of the weight of a layer: a number that it does not have is None. The
    columns of an input scaling are a pair with the number of inputs."""
    if l.kind == "output-scaling": return l.roles["vector"].count(), None
    if l.kind == "input-scaling": return None, (l.roles["vector"].count(),)
    if l.kind == "difference":
        if l.word == "bias": return l.tensor.count(), None
        return l.tensor.matrix().size()
    if applies(l): return delta(l).size()
    m, n = l.B.shape[0], math.prod(l.A.shape[1:])
    return (n, m) if l.kind == "embedding" else (m, n)

def inputs(shape):
    """n and K of a weight."""
    return (shape[1] if len(shape) > 1 else math.prod(shape)), math.prod(shape[2:])

def scaled(l, W, shape, first, total):
    """ΔW/s of a scaling, for W of some rows of a weight of this shape, and of all rows that the
    layer changes those from the first on."""
    v, (n, K) = l.roles["vector"].matrix(), inputs(shape)
    numbers = [x for r in v.rows for x in r]
    if l.kind == "output-scaling":
        need(len(numbers) == total, "R137", f"{l.module}: {len(numbers)} numbers for {total} rows")
        by = [[x * y for y in row] for x, row in zip(numbers[first:], W.rows)]
    else:
        need(len(numbers) == n, "R137", f"{l.module}: {len(numbers)} numbers for {n} inputs")
        by = [[numbers[c // K] * y for c, y in enumerate(row)] for row in W.rows]
    return Matrix(by, W.e + v.e)

def identity(n): return Matrix([[int(i == j) for j in range(n)] for i in range(n)], 0)

def apply(l, changes, slices):
    """The terms of a layer of section 2, or of a difference. Slices are a tensor, a first row and a
    number of rows each, and one of the whole is the target."""
    if l.kind == "difference" and l.word == "bias": return bias(l, changes, slices)
    first, total = 0, sum(s[2] for s in slices)
    for name, row, rows in slices:
        t = changes.base.tensors[name]
        W = t.matrix().take(range(row, row + rows))
        need(len(t.shape) > 1 or l.kind == "difference", "R137", f"{name} {t.shape}")
        if l.kind.endswith("scaling"): part = scaled(l, W, t.shape, first, total)
        elif l.kind == "difference":
            D = l.tensor.matrix()
            same = l.tensor.shape == t.shape or len(l.tensor.shape) > 1 < len(t.shape) \
                and D.size() == t.matrix().size()
            if len(slices) == 1 and rows == t.matrix().size()[0]:
                need(same, "R139", f"{l.target} is {t.shape}, the tensor {l.tensor.shape}")
                part = D
            else: part = D.take(range(first, first + rows))
        else:
            D = delta(l)
            need(D.size() == (total, W.size()[1]), "R137", f"{name} {t.shape}, ΔW {D.size()}")
            part = D.take(range(first, first + rows))
        changes.term(l, name, l.S, part, identity(part.size()[1]), row)
        first += rows

def bias(l, changes, slices):
    """The elements of one or several biases at the rows of the weights beside them."""
    D, first = l.tensor.matrix(), 0
    values = [x for r in D.rows for x in r]
    for name, row, rows in slices:
        t = changes.base.tensors[name]
        if len(slices) == 1 and D.size() == t.matrix().size(): row, rows = 0, t.count()
        else: need(len(slices) > 1 or l.slices, "R139", f"{name} {t.shape}, {l.tensor.shape}")
        changes.term(l, name, l.S, Matrix([values[first:first + rows]], D.e), identity(rows), 0, row)
        first += rows

def rescales(l, changes, name, weight, turned=False):
    """The groups of places that a magnitude rescales: rows, columns, or all of an input."""
    role = "magnitude" if "magnitude" in l.roles else "input_magnitude"
    if role not in l.roles: return
    t = changes.base.tensors[name]
    rows, columns = t.matrix().size()
    n, K = inputs(t.shape)
    by_rows = [[i * columns + j for j in range(columns)] for i in range(rows)]
    if role == "magnitude": groups = [*map(list, zip(*by_rows))] if turned else by_rows
    elif turned: groups = by_rows
    else: groups = [[i * columns + j * K + k for i in range(rows) for k in range(K)]
                    for j in range(n)]
    need(l.roles[role].count() == len(groups), "R98", f"{l.module}: {len(groups)} groups")
    need(weight == 1, "R99", weight)
    need(not changes.of[name].magnitude, "R100", name)
    changes.of[name].magnitude = l.roles[role], groups
