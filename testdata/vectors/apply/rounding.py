"""R84-R87: numbers (section 3)."""
from exact import FORMATS, M, T, exactly, inf, noise, rn, value
from kit import Fraction, Layer, adapter, bad, lin, ok, replace, rows, tensors_of

TWO = Fraction(2)


def row(d):
    """Pairs of bits w and a sum Σ: half units and nearly half ones, subnormal numbers, zeros, the
    largest number, infinity and NaN."""
    e, f = FORMATS[d]
    ulp, least, half = TWO**-f, TWO ** (3 - 2 ** (e - 1) - 1 - f), TWO ** (2 ** (e - 1) - 2 - f)
    tiny = least if d == "F64" else TWO**-900
    minus, one, big = 1 << e + f, rn(d, Fraction(1)), inf(d) - 1
    return [(one, ulp / 2), (one + 1, ulp / 2), (one, ulp / 2 + tiny), (one + 1, ulp / 2 - tiny),
            (one, -ulp / 4), (one, -ulp / 4 - tiny), (minus | one, -ulp / 2), (3, least / 2),
            (2, least / 2), (1, -least / 2), (minus | 1, least / 2), (1, -least),
            (1 << f, -least / 2), (minus, 0), (minus, least / 4), (minus, -least / 4), (0, 0),
            (0, -least / 2), (minus | 3, 3 * least), (big, half - tiny), (minus | big, tiny - half),
            (inf(d), -1), (minus | inf(d), 1), (inf(d) | 5, 1), (minus | inf(d) | 9, 0)]


def parts(sums):
    """Two rows of F64, whose sum is the sums: 1 times the first, and 2^-600 times the second."""
    a = [Fraction(float(x)) if abs(x) > TWO**-1000 else Fraction(0) for x in sums]
    rest = [(x - y) * 2**600 for x, y in zip(sums, a)]
    return [exactly("F64", (1, len(a)), r) for r in (a, rest)]


ONE, SMALL = (exactly("F64", (1, 1), [x]) for x in (1, TWO**-600))
BOTH = exactly("F64", (1, 2), [1, TWO**-600])


def one_rank(a, b=ONE, **more):
    return adapter(Layer("x", a, b, **{"alpha": 1} | more))


def one_row(d, pairs):
    bits, sums = zip(*pairs)
    coarse, fine = parts([Fraction(x) for x in sums])
    both = Layer("x", T("F64", (2, len(bits)), coarse.bits + fine.bits), BOTH, alpha=2)
    return ({"x.weight": T(d, (1, len(bits)), bits)}, adapter(both), [one_rank(coarse),
            one_rank(fine, SMALL)], {"x.weight": M([sums])})


for d in FORMATS:
    base, both, two, want = one_row(d, row(d))
    ok(f"rounding-{d.lower()}", base, both, want)
    ok(f"rounding-{d.lower()}-two-adapters", base, two, want)
    ok(f"rounding-{d.lower()}-sum-of-0", base, [both, (both, -1)], {}, answers="again")
    e, f = FORMATS[d]
    big, half, minus = inf(d) - 1, TWO ** (2 ** (e - 1) - 2 - f), 1 << e + f
    for name, w, s in (("largest", big, half), ("lowest", minus | big, -half)):
        base, both, _, _ = one_row(d, [(w, s), (0, 1)])
        bad(f"r87-{d.lower()}-{name}", base, both)
        ok(f"r87-{d.lower()}-{name}-allowed", base, both, answers="allow-nonfinite",
           want={"x.weight": T(d, (1, 2), [w + 1, rn(d, Fraction(1))])})

# --- Multipliers
WIDE = tensors_of({"x.weight": ("F64", (2, 3)), "y.weight": ("F32", (4, 3)),
                   "y.bias": ("F32", (4,))})
for name, layer, weight in (
        ("rounded-twice", lin("x", 2, 3, r=3, alpha=2), 0.1),
        ("of-root", lin("x", 2, 3, r=2, alpha=3, scaling="alpha/sqrt(r)"), 1),
        ("fixed", lin("x", 2, 3, scaling="fixed", scale=0.3), -3),
        ("of-rank-3", lin("x", 2, 3, r=3, alpha=16), 1)):
    ok("scale-" + name, WIDE, (adapter(layer), weight),
       {"x.weight": Fraction(weight * float(layer.s)) / layer.s * layer.d})
huge = Layer("x", exactly("F64", (1, 3), [TWO**-1000, TWO**-1001, TWO**-1002]),
             exactly("F64", (2, 1), [1, -1]), scaling="fixed", scale=2.0**1000)
bad("r84-infinite", WIDE, (adapter(huge), 2.0**24))
bad("r84-minus-infinite", WIDE, (adapter(huge), -(2.0**24)))
ok("r84-largest-power", WIDE, (adapter(huge), 2.0**23), {"x.weight": TWO**23 * huge.d})
ok("r84-0", WIDE, adapter(lin("x", 2, 3, alpha=0)), {})
ok("r84-underflow", WIDE, (adapter(lin("x", 2, 3, scaling="fixed", scale=5e-324)), 0.25), {})

# --- dtypes and values of factors
for name, a, b in (("a-f8", "F8_E4M3", "F32"), ("b-i32", "F32", "I32")):
    bad("r85-" + name, WIDE, adapter(Layer("y", noise("a", a, (1, 3)), noise("b", b, (4, 1)))))
for a, b in (("F16", "BF16"), ("F64", "F16"), ("BF16", "F32")):
    mixed = Layer("y", noise("a", a, (1, 3)), noise("b", b, (4, 1)))
    ok(f"r85-{a.lower()}-{b.lower()}", WIDE, adapter(mixed), {"y.weight": mixed.d})

NAN, INF = 0x7FC00000, inf("F32")


def spoilt(t, bits):
    return T(t.dtype, t.shape, [bits, *t.bits[1:]])


y = lin("y", 4, 3)
A, B = y.roles["A"], y.roles["B"]
vector, matrix = noise("v", "F32", (4,)), noise("m", "F32", (2, 3))
for name, parts_, requires in (
        ("nan-in-a", [Layer("y", spoilt(A, NAN), B)], []),
        ("inf-in-b", [Layer("y", A, spoilt(B, INF | 1 << 31))], []),
        ("inf-in-bias", [Layer("y", A, B, bias=spoilt(vector, INF))], [("lora-bias", "y")]),
        ("nan-in-magnitude", [Layer("y", A, B, magnitude=spoilt(vector, NAN))], [("dora", "y")]),
        ("nan-in-replace", [replace("y.bias", spoilt(vector, NAN))], []),
        ("inf-in-rows", [rows("y.weight", [2, 0], spoilt(matrix, INF))], [])):
    bad("r86-" + name, WIDE, adapter(*parts_, requires=requires))
ok("r86-replace-allowed", WIDE, adapter(replace("y.bias", spoilt(vector, NAN))),
   {"y.bias": spoilt(vector, NAN)}, answers="allow-nonfinite")
one, ninf = rn("F32", Fraction(1)), INF | 1 << 31
w = T("F32", (2, 4), [rn("F32", Fraction(x)) for x in range(1, 9)])
w.bits[1] = ninf
wild = Layer("x", T("F32", (1, 4), [INF, INF, one, NAN]), exactly("F32", (2, 1), [1, 0]))
ok("r86-ieee-754", {"x.weight": w}, adapter(wild), answers="allow-nonfinite", any_nan=True,
   want={"x.weight": T("F32", (2, 4), [INF, NAN, rn("F32", Fraction(5)), NAN, NAN, NAN, w.bits[6],
                                       NAN])})
bad("r87-replace", {"x.weight": ("F16", (2, 3))}, adapter(replace(
    "x.weight", exactly("F32", (2, 3), [1, 2, 65520, 3, 4, 5]))))
below = exactly("F32", (2, 3), [1, 2, Fraction(65519), TWO**-25, -TWO**-25, TWO**-24])
ok("r87-replace-rounded", {"x.weight": ("F16", (2, 3))}, adapter(replace("x.weight", below)),
   {"x.weight": T("F16", (2, 3), [rn("F16", value("F32", b)) for b in below.bits])})
