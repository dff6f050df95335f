"""R101-R103: compact factors (section 7)."""
from exact import M
from kit import Fraction, Layer, adapter, bad, ok, tensors_of

# Weights of m outputs and n inputs, as they are and transposed; sq.c_attn and sq.q are square.
BASE = tensors_of({
    "up.weight": ("F32", (6, 8)), "up_t.weight": ("F32", (8, 6)), "wide.weight": ("F64", (4, 6)),
    "wide_t.weight": ("F64", (6, 4)), "sq.c_attn.weight": ("F32", (6, 6)),
    "qkv.weight": ("F32", (6, 4)),
    "qkv_t.weight": ("F32", (4, 6)), "sq.q.weight": ("F32", (6, 6)),
    "cube.weight": ("F32", (6, 8, 1))})


def layer(module, a, b, r=1, **more):
    return Layer(module, a, b, kind="other", r=r, **more)


def both(name, module, a, b, requires, sigma, r=1, **more):
    """A case for the weight, and one for the transposed one."""
    for end in ("", "_t"):
        x = layer(module + end, a, b, r, **more)
        want = sigma(x)
        ok(name + end.replace("_t", "-transposed"), BASE, adapter(x, requires=[requires]),
           {x.module + ".weight": want.t if end else want})


def sum_of(terms):
    terms = list(terms)
    return sum(terms[1:], terms[0])


def columns(B, i, j):
    return B.t[i:j].t


# --- 7.1
bd = ("bdlora", "use_bdlora")


def blocks_of_a(x, shape=(6, 8), q=2):
    """A is block-diagonal: q blocks of rows, each for its own columns."""
    a, c = len(x.A.rows) // q, len(x.A.rows[0])
    return sum_of((x.s * (columns(x.B, k * a, (k + 1) * a) @ x.A[k * a:(k + 1) * a])).at(
        shape, 0, k * c) for k in range(q))


def blocks_of_b(x, shape=(6, 8)):
    w = len(x.B.rows[0])
    q = len(x.A.rows) // w
    h = shape[0] // q
    return sum_of((x.s * (x.B[k * h:(k + 1) * h] @ x.A[k * w:(k + 1) * w])).at(shape, k * h)
                  for k in range(q))


both("r101-bdlora-a", "up", (4, 4), (6, 4), bd, blocks_of_a, r=4)
both("r101-bdlora-b", "up", (4, 8), (6, 2), bd, blocks_of_b, r=4)
both("r101-bdlora-b-3-dimensions", "up", (3, 8), (6, 1, 1), bd, blocks_of_b, r=3)
both("r101-bdlora-one-block", "up", (2, 8), (6, 2), bd, lambda x: x.d, r=2)
for name, module, a, b in (
        ("columns", "up", (2, 3), (6, 2)), ("rows-of-a", "up", (3, 4), (6, 3)),
        ("rows-of-b", "up", (2, 4), (5, 2)), ("blocks-of-rows", "up", (4, 8), (6, 1)),
        ("both-smaller", "up", (4, 4), (6, 2)), ("3-dimensions", "cube", (2, 8), (6, 2))):
    bad("r101-bdlora-" + name, BASE, adapter(layer(module, a, b, a[0]), requires=[bd]))

# --- 7.2
qa = ("qalora", "use_qalora")


def grouped(n):
    def sigma(x):
        c = len(x.A.rows[0])
        g = n // c
        spread = M([[v for v in row for _ in range(g)] for row in x.A.rows])
        return Fraction(float(x.s) * (c / g)) * (x.B @ spread)
    return sigma


both("r101-qalora", "up", (2, 4), (6, 2), qa, grouped(8), r=2)
both("r102-two-thirds", "wide", (2, 2), (4, 2), qa, grouped(6), r=2, alpha=5)
both("r102-one-group", "wide", (1, 1), (4, 1), qa, grouped(6), alpha=0.1)
for name, a, b in (("columns", (2, 3), (6, 2)), ("rows", (2, 4), (8, 2)),
                   ("ranks", (2, 4), (6, 1))):
    bad("r101-qalora-" + name, BASE, adapter(layer("up", a, b, 2), requires=[qa]))
bad("r102-groups-of-1", BASE, adapter(layer("up", (2, 8), (6, 2), 2), requires=[qa]))
for module, config, turn in (("sq.c_attn", None, False),
                             ("sq.c_attn", {"model_type": "gpt2"}, True),
                             ("sq.q", {"model_type": "gpt2"}, False)):
    x = layer(module, (2, 3), (6, 2), 2)
    want = grouped(6)(x)
    ok(f"square-qalora-{module[3:]}{'-gpt2' if config else ''}", BASE, adapter(x, requires=[qa]),
       {module + ".weight": want.t if turn else want}, config=config)


# --- 7.3: projections of h rows; the places of those that are adapted
def merged(places, shape=(6, 4), q=2):
    def sigma(x):
        b, w = len(x.B.rows), len(x.B.rows[0])
        h = b // len(places)
        return sum_of((x.s * (x.B[t:t + 1] @ x.A[t * q // b * w:(t * q // b + 1) * w])).at(
            shape, places[t // h] * h + t % h) for t in range(b))
    return sigma


for name, where, a, b, places, q in (
        ("first-and-last", "[true, false, true]", (2, 4), (4, 1), (0, 2), 2),
        ("all-of-rank-2", "[true, true, true]", (6, 4), (6, 2), (0, 1, 2), 3),
        ("last", "[false,true]", (2, 4), (3, 2), (1,), 1),
        ("one-group", "[true, false, true]", (2, 4), (4, 2), (0, 2), 1),
        ("groups-across-projections", "[true, true, false]", (4, 4), (4, 1), (0, 1), 4)):
    both("r103-" + name, "qkv", a, b, ("merged-linear", "enable_lora = " + where),
         merged(places, q=q), r=a[0])
for name, where, a, b in (("none", "[false, false]", (2, 4), (6, 2)),
                          ("rows", "[true, false, true]", (2, 4), (6, 1)),
                          ("ranks", "[true, false, true]", (3, 4), (4, 2)),
                          ("inputs", "[true, false, true]", (2, 3), (4, 1)),
                          ("groups", "[true, false, true]", (3, 4), (4, 1))):
    bad("r101-merged-" + name, BASE,
        adapter(layer("qkv", a, b, 2), requires=[("merged-linear", "enable_lora = " + where)]))
for name, where in (("no-value", "enable_lora"), ("a-number", "enable_lora = 3"),
                    ("numbers", "enable_lora = [1, 0, 1]"),
                    ("another-field", "enable = [true, false, true]"),
                    ("no-json", "enable_lora = [True, False, True]")):
    bad("r103-" + name, BASE,
        adapter(layer("qkv", (2, 4), (4, 1), 2), requires=[("merged-linear", where)]))
