"""R111-R122: beside the layers, PiSSA and OLoRA, and the order (sections 9 to 11)."""
from exact import M, T, added, exactly, noise
from kit import Fraction, Layer, adapter, bad, lin, ok, opaque, replace, rows, tensors_of

BASE = tensors_of({
    "m.q.weight": ("BF16", (4, 6)), "m.k.weight": ("F32", (4, 6)), "m.norm.weight": ("F32", (6,)),
    "m.steps": ("I64", (3,)), "m.mask": ("I32", (3,)), "m.table.weight": ("F16", (5, 3)),
    "m.cube": ("F32", (5, 3, 1)), "m.scale": ("F64", ())})
q, k = lin("m.q", 4, 6), lin("m.k", 4, 6)
f32, bf16 = noise("new", "F32", (4, 6)), noise("new", "BF16", (4, 6))
odd = exactly("F32", (4, 6), [Fraction(257 + 2 * i, 256) for i in range(24)])  # half way in BF16
norm = noise("norm", "F32", (6,))
Q, K, NORM, TABLE = "m.q.weight", "m.k.weight", "m.norm.weight", "m.table.weight"

# --- R111: opaque tensors
for name, requires in (("nothing-says-why", []), ("velora-of-another", [("velora", "other")]),
                       ("velora-field", [("velora", "use_velora")])):
    bad("r111-" + name, BASE, adapter(q, opaque("state"), requires=requires))
for feature in ("velora", "monteclora"):
    ok("r111-" + feature, BASE, adapter(
        q, opaque("state"), requires=[(feature, "state"), (feature, "use")]), {Q: q.d})

# --- R112-R116: replace and rows
some = noise("some", "F16", (2, 3))


def with_rows(t, where, new):
    n = t.shape[1]
    bits = list(t.bits)
    for i, r in enumerate(where):
        bits[r * n:r * n + n] = new.to(t.dtype).bits[i * n:i * n + n]
    return T(t.dtype, t.shape, bits)


one_row, tokens = adapter(rows(TABLE, [3, 0], some)), with_rows(BASE[TABLE], [3, 0], some)
bad("r112-replace", BASE, (adapter(replace(NORM, norm)), 0.5))
bad("r112-replace-minus", BASE, (adapter(k, replace(NORM, norm)), -1))
bad("r112-rows", BASE, (one_row, 2))
ok("r112-replace", BASE, [adapter(replace(NORM, norm)), (adapter(k), 0.5)],
   {NORM: norm, K: Fraction(1, 2) * k.d})
ok("r112-rows", BASE, one_row, {TABLE: tokens})
other = noise("other", "F32", (6,))
bad("r113-replace", BASE, adapter(replace(NORM, norm), replace(NORM, other)))
bad("r113-replace-by-two", BASE, [adapter(replace(NORM, norm)), adapter(replace(NORM, other))])
bad("r113-rows", BASE, adapter(rows(TABLE, [3], noise("a", "F16", (1, 3))),
                               rows(TABLE, [1], noise("b", "F16", (1, 3)))))
bad("r113-rows-by-two", BASE, [one_row, adapter(rows(TABLE, [1], noise("b", "F16", (1, 3))))])
ok("r113-two-targets", BASE, [adapter(replace(NORM, norm)), adapter(replace(K, f32))],
   {NORM: norm, K: f32})
for name, target, shape in (("shape", NORM, (5,)), ("dimensions", NORM, (1, 6)),
                            ("turned", K, (6, 4)),
                            ("elements", K, (4, 5)), ("scalar", "m.scale", (1,))):
    bad("r114-" + name, BASE, adapter(replace(target, noise("new", "F32", shape))))
ok("r114-scalar", BASE, adapter(replace("m.scale", noise("new", "F32", ()))),
   {"m.scale": noise("new", "F32", ()).to("F64")})
ok("r114-rounded", BASE, adapter(replace(Q, odd)), {Q: odd.to("BF16")})
special = T("BF16", (4, 6), [0x8000, 1, 0x8001, *bf16.bits[3:]])
ok("replace-keeps-bits", BASE, adapter(replace(Q, special)), {Q: special})
steps = T("I64", (3,), [2**63, 2**64 - 1, 7])
for name, target, t, also in (("i64-by-f32", "m.steps", noise("t", "F32", (3,)), ["R81"]),
                              ("f32-by-i64", NORM, noise("t", "I64", (6,)), []),
                              ("i64-by-i32", "m.steps", noise("t", "I32", (3,)), ["R81"]),
                              ("f32-by-f8", NORM, noise("t", "F8_E4M3", (6,)), [])):
    bad("r115-" + name, BASE, adapter(replace(target, t)), *also)
bad("r115-i32-by-i32", BASE, adapter(replace("m.mask", noise("t", "I32", (3,)))), "R81")
bad("r115-rows-of-i64", BASE, adapter(rows(TABLE, [1], noise("t", "I64", (1, 3)))))
ok("r115-i64-by-i64", BASE, adapter(replace("m.steps", steps)), {"m.steps": steps})
for d in ("F64", "BF16"):
    t = noise(d, d, (1, 3))
    ok("r115-rows-of-" + d.lower(), BASE, adapter(rows(TABLE, [1], t)),
       {TABLE: with_rows(BASE[TABLE], [1], t)})
for name, target, where, shape in (("columns", TABLE, [0], (1, 4)), ("row", TABLE, [5], (1, 3)),
                                   ("second-row", TABLE, [0, 7], (2, 3)),
                                   ("one-dimension", NORM, [1], (1, 6)),
                                   ("three-dimensions", "m.cube", [1], (1, 3)),
                                   ("vector", TABLE, [0, 1, 2], (3,))):
    bad("r116-" + name, BASE, adapter(rows(target, where, noise("t", "F32", shape))))
t = noise("t", "F32", (5, 3))
ok("r116-all-rows", BASE, adapter(rows(TABLE, [4, 3, 2, 1, 0], t)),
   {TABLE: with_rows(BASE[TABLE], [4, 3, 2, 1, 0], t)})
ok("rows-none", BASE, adapter(k, rows(TABLE, [], noise("t", "F32", (0, 3)))), {K: k.d})

# --- Section 10: weights of which P is plain to see
PARTS = tensors_of({
    "s.p.weight": exactly("F32", (2, 3), [4, 0, 0, 0, 2, 0]),
    "s.o.weight": exactly("F32", (2, 3), [4, 1, 2, 0, 2, 1]),
    "s.d.weight": exactly("F64", (2, 3), [4, 0, 0, 0, 2, 0]), "s.e.weight": ("F32", (3, 2)),
    "s.n.weight": T("F32", (2, 3), [0x7FC00000, 0, 0, 0, 0, 0x40000000]),
    "s.t.weight": exactly("F32", (3, 2), [4, 0, 0, 2, 0, 0])})
KINDS = {"pissa": M([[4, 0, 0], [0, 0, 0]]), "olora": M([[4, 1, 2], [0, 0, 0]])}
recompute = {"answers": "recompute-residual"}
for feature, part in KINDS.items():
    module, requires = f"s.{feature[0]}", [(feature, "init_lora_weights")]
    name = module + ".weight"
    x, y = lin(module, 2, 3, alpha=1), lin(module, 2, 3, alpha=4, salt="y")
    bad("r117-" + feature, PARTS, adapter(x, requires=requires))
    ok("r117-" + feature, PARTS, adapter(x, requires=requires), {name: x.d + -1 * part},
       **recompute)
    times = y.s if feature == "olora" else 1
    ok(f"r117-{feature}-scales", PARTS, (adapter(y, requires=requires), 0.5), **recompute,
       want={name: Fraction(1, 2) * (y.d + -times * part)})
    emb = lin("s.e", 2, 3, kind="embedding")
    for kind, layers, more in (("embedding", [x, emb], []), ("f64", [lin("s.d", 2, 3)], []),
                               ("nan", [lin("s.n", 2, 3)], []),
                               ("attention", [x], [("multihead-attention", "s")])):
        bad(f"r118-{feature}-{kind}", PARTS, adapter(*layers, requires=requires + more),
            **recompute)
    again = adapter(y, requires=requires)
    bad(f"r119-{feature}-twice", PARTS, [adapter(x, requires=requires), again], **recompute)
    bad(f"r119-{feature}-replaced", PARTS, adapter(x, replace(name, noise("r", "F32", (2, 3))),
                                                   requires=requires), **recompute)
    bad(f"r119-{feature}-rows", PARTS, adapter(x, rows(name, [1], noise("r", "F32", (1, 3))),
                                               requires=requires), "R121", **recompute)
    ok(f"r119-{feature}-beside-plain", PARTS, [adapter(x, requires=requires), adapter(y)],
       {name: x.d + -1 * part + y.d}, **recompute)
    full = lin(module, 2, 3, r=3, alpha=3)
    ok(f"r118-{feature}-whole", PARTS, adapter(full, requires=requires),
       {name: full.d + -1 * PARTS[name].matrix()}, **recompute)
OPEN = tensors_of({"s.p.weight": exactly("F32", (2, 3), [2, 0, 0, 0, 2, 0]),
                   "s.o.weight": exactly("F32", (2, 3), [0, 1, 2, 0, 2, 1]),
                   "s.z.weight": exactly("F32", (2, 3), [4, 0, 0, 0, 0, 0])})
for module, feature in (("s.p", "pissa"), ("s.o", "olora")):
    bad(f"r118-{feature}-open", OPEN, adapter(lin(module, 2, 3), requires=[(feature, "")]),
        **recompute)
t = lin("s.t", 2, 3)
bad("r118-olora-transposed", PARTS, adapter(t, requires=[("olora", "")]), **recompute)
ok("r118-pissa-transposed", PARTS, adapter(t, requires=[("pissa", "")]), **recompute,
   want={"s.t.weight": t.d.t + M([[-4, 0], [0, 0], [0, 0]])})

# --- Section 11
new = noise("replaced", "BF16", (4, 6))
bad("r120-other-dtype", BASE, adapter(q, replace(Q, f32)))
bad("r120-of-another-adapter", BASE, [adapter(q), adapter(replace(Q, f32))])
for name, a in (("one-adapter", adapter(q, replace(Q, new))),
                ("two-adapters", [adapter(q), adapter(replace(Q, new))])):
    ok("r120-" + name, BASE, a, {Q: added(new, q.d)})
row = noise("row", "F32", (1, 6))
bad("r121-terms", BASE, adapter(q, rows(Q, [1], row)))
bad("r121-terms-of-another", BASE, [adapter(q), adapter(rows(Q, [1], row))])
bad("r121-replace-of-another", BASE, [adapter(replace(Q, new)), adapter(rows(Q, [1], row))])
ok("r121-replace-and-rows", BASE, adapter(replace(Q, new), rows(Q, [1], row)),
   {Q: with_rows(new, [1], row)})
ok("r121-replace-rounded-and-rows", BASE, adapter(replace(Q, odd), rows(Q, [1], row)),
   {Q: with_rows(odd.to("BF16"), [1], row)})
# A convolution of kernel 1, 4×6×1, is also a stack of 4 matrices 6×1.
STACK = tensors_of({"m.c.weight": ("F32", (4, 6, 1)), "m.d.weight": ("F32", (4, 6, 1))})
stacked = Layer("m.c", (4, 1), (6, 4), kind="expert", r=1)
path = [("experts", "m.c.weight")]
flat, apart = adapter(lin("m.c", 4, 6)), adapter(d := lin("m.d", 4, 6))
bad("r122-stack-and-matrix", STACK, [adapter(stacked, requires=path), flat])
ok("r122-two-tensors", STACK, [adapter(stacked, requires=path), apart],
   {"m.c.weight": stacked.experts(4), "m.d.weight": d.d})
