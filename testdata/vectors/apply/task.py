"""R74-R83: requirements of layers, the task and the base (sections 1 and 2)."""
from exact import M, noise, rescaled
from kit import Fraction, adapter, bad, fingerprint, lin, ok, opaque, replace, tensors_of

PLAIN = tensors_of({
    "model.layers.0.q.weight": ("F32", (4, 6)), "model.layers.0.q.bias": ("F32", (4,)),
    "model.layers.1.q.weight": ("BF16", (4, 6)), "model.layers.2.q.weight": ("F64", (4, 6)),
    "model.layers.0.o.weight": ("F16", (4, 4)), "model.norm.weight": ("F32", (4,)),
    "model.layers.0.f8.weight": ("F8_E4M3", (4, 6)), "model.steps": ("I64", (2,))})
Q0, Q1, Q2 = (f"model.layers.{i}.q" for i in range(3))


def w(module):
    return module + ".weight"


q0, q1, q2 = (lin(m, 4, 6) for m in (Q0, Q1, Q2))
again = lin(Q0, 4, 6, salt="again")
plain = adapter(q0)


def mag(module, n, dtype="F32"):
    return noise(module + "magnitude", dtype, (n,))


def with_magnitude(module=Q0, n=4, **more):
    return lin(module, 4, 6, magnitude=mag(module, n), **more)


dora, biased = with_magnitude(), lin(Q0, 4, 6, bias=noise("bias", "F32", (4,)))
bias = M([[b] for b in biased.roles["bias"].matrix().flat()])
doubled = rescaled(PLAIN[w(Q0)], dora.d, dora.roles["magnitude"])

# --- R74-R76: requirements
for name, layer, requires, more in (
        ("dora-of-module", q0, [("dora", Q0)], {}), ("dora-of-all", q0, [("dora", "use_dora")], {}),
        ("dora-nowhere", q0, [("dora", "")], {}), ("lora-bias", q0, [("lora-bias", Q0)], {}),
        ("dora-without-layer", q0, [("dora", Q1)], {}),
        ("lora-bias-without-layer", biased, [("lora-bias", Q0), ("lora-bias", Q1)], {}),
        ("method", q0, [("convolution", Q0)], {"method": "dora"})):
    bad(f"r74-{name}", PLAIN, adapter(layer, requires=requires, **more))
for name, requires, more in (("of-module", [("dora", Q0)], {}), ("nowhere", [("dora", "")], {}),
                             ("of-all", [("dora", "use_dora")], {"method": "dora"})):
    ok(f"r74-dora-{name}", PLAIN, adapter(dora, requires=requires, **more), {w(Q0): doubled})
ok("r74-dora-of-one", PLAIN, adapter(dora, q1, requires=[("dora", Q0)]),
   {w(Q0): doubled, w(Q1): q1.d})
bad("r75-magnitude", PLAIN, adapter(dora))
bad("r75-magnitude-of-other", PLAIN, adapter(dora, with_magnitude(Q1), requires=[("dora", Q1)]))
bad("r75-bias", PLAIN, adapter(biased))
ok("r75-bias", PLAIN, adapter(biased, requires=[("lora-bias", Q0)]),
   {w(Q0): biased.d, Q0 + ".bias": 2 * bias})
bad("r76-role", PLAIN, adapter(lin(Q0, 4, 6, C=(1, 1))))
ok("r76-plain", PLAIN, plain, {w(Q0): q0.d})

stored = lin(Q0, 4, 6, alpha=3, stored_alpha=noise("alpha", "F32", ()))
ok("r76-alpha", PLAIN, adapter(stored), {w(Q0): stored.d})

# --- R79, R80
same = adapter(q0, orientation="mxn", dialect="peft")
bad("r79-one-file-twice", PLAIN, [plain, plain])
bad("r79-same-content", PLAIN, [plain, same])
ok("r79-again", PLAIN, [plain, (same, 0.5)], {w(Q0): Fraction(3, 2) * q0.d}, answers="again")
ok("r79-other-content", PLAIN, [plain, adapter(again)], {w(Q0): q0.d + again.d})
bad("r80-nothing", PLAIN, adapter())
bad("r80-opaque", PLAIN, adapter(opaque("v"), requires=[("velora", "v")]))
new = noise("new", "F32", (4,))
ok("r80-replace", PLAIN, adapter(replace("model.norm.weight", new)), {"model.norm.weight": new})

# --- R81-R83: the base
bad("r81-f8", PLAIN, adapter(lin("model.layers.0.f8", 4, 6)))
bad("r81-i64", PLAIN | tensors_of({"model.layers.0.i.weight": ("I64", (4, 6))}),
    adapter(lin("model.layers.0.i", 4, 6)))
ok("r81-every-dtype", PLAIN, adapter(q0, q1, q2, requires=[]),
   {w(Q0): q0.d, w(Q1): q1.d, w(Q2): q2.d})
SCALES = ("weight_scale", "weight_scale_inv", "weight.absmax", "weight.quant_map", "weight.SCB",
          "scales")
SCALED = tensors_of({f"h.{i}.q.{s}": ("F32", (2, 3) if s == "weight" else (2,))
                     for i, scale in enumerate((*SCALES, "scale")) for s in ("weight", scale)})
for i, scale in enumerate(SCALES):
    bad(f"r82-{scale}", SCALED, adapter(lin(f"h.{i}.q", 2, 3)))
ok("r82-beside-another", SCALED, adapter(h6 := lin("h.6.q", 2, 3)), {"h.6.q.weight": h6.d})
for name, prints, answers, right in (
        ("of-target", {w(Q0): "0" * 64}, "", False),
        ("of-another", {"model.norm.weight": fingerprint(PLAIN[w(Q0)])}, "", False),
        ("one-of-two", {w(Q0): fingerprint(PLAIN[w(Q0)]), w(Q1): "1" * 64}, "", False),
        ("right", {n: fingerprint(PLAIN[n]) for n in (w(Q0), "model.steps")}, "", True),
        ("no-such-tensor", {"q.weight": "0" * 64}, "", True),
        ("any-base", {w(Q0): "0" * 64}, "any-base", True)):
    a = adapter(q0, fingerprints=prints)
    if right:
        ok("r83-" + name, PLAIN, a, {w(Q0): q0.d}, answers=answers)
    else:
        bad("r83-" + name, PLAIN, a)

