"""R90-R100: the form of a layer, and plain layers (sections 5 and 6)."""
from exact import M, T, exactly, noise, rescaled, rn
from kit import Fraction, Layer, adapter, bad, lin, ok, replace, rows, tensors_of

# --- Section 5
ONE = tensors_of({"q.weight": ("F32", (4, 6)), "k.weight": ("F32", (4, 6)), "q.bias": ("F32", (4,)),
                  "k.bias": ("F32", (4,)), "b.weight": ("BF16", (3, 4)),
                  "e.weight": ("F32", (5, 3)),
                  "model.experts.gate_up_proj": ("F32", (2, 6, 4))})
q, k = lin("q", 4, 6), lin("k", 4, 6)
magnitude = noise("magnitude", "F32", (4,))
other = Layer("q", (1, 6), (4, 1), kind="other")
three = Layer("model.experts.gate_up_proj", (2, 1, 4), (2, 6, 1), kind="other", r=1)
bad("r90-other", ONE, adapter(other))
bad("r90-three-dimensions", ONE, adapter(three))
bad("r90-two-dimensions", ONE, adapter(other, requires=[("expert-factors", "")]))


def expert_by_expert(layer):
    A, B = layer.roles["A"], layer.roles["B"]
    a, b = (T(t.dtype, (t.shape[0] * t.shape[1], t.shape[2]), t.bits).matrix() for t in (A, B))
    r, m = A.shape[1], B.shape[1]
    return [layer.s * (b[e * m:(e + 1) * m] @ a[e * r:(e + 1) * r]) for e in range(A.shape[0])]


ok("r90-expert-factors", ONE, adapter(three, requires=[("expert-factors", "")]),
   {"model.experts.gate_up_proj": expert_by_expert(three)})

qa = Layer("q", (1, 3), (4, 1), kind="other", salt="qa")
spread = M([[x for x in row for _ in range(2)] for row in qa.A.rows])
kd = lin("k", 4, 6, magnitude=magnitude)
expert = Layer("model.experts", (2, 4), (6, 2), kind="expert", r=1)
biased = Layer("model.experts", (2, 4), (6, 2), kind="expert", r=1, bias=(6,))
for name, layer, requires in (
        ("qalora-and-dora-everywhere", qa, [("qalora", "use_qalora"), ("dora", "use_dora")]),
        ("qalora-and-dora", qa, [("qalora", "use_qalora"), ("dora", "")]),
        ("qalora-with-bias", Layer("q", (1, 3), (4, 1), kind="other", bias=(4,)),
         [("qalora", "use_qalora"), ("lora-bias", "q")]),
        ("expert-with-bias", biased,
         [("experts", "model.experts.gate_up_proj"), ("lora-bias", "model.experts")]),
        ("one-expert-with-dora", lin("model.experts.0.gate_proj", 3, 4, magnitude=(3,)),
         [("dora", "model.experts.0.gate_proj")])):
    bad("r91-" + name, ONE, adapter(layer, requires=requires))
ok("r91-qalora-and-dora-of-another", ONE,
   adapter(qa, kd, requires=[("qalora", "use_qalora"), ("dora", "k")]),
   {"q.weight": qa.s * Fraction(3, 2) * (qa.B @ spread),
    "k.weight": rescaled(ONE["k.weight"], kd.d, magnitude)})

gate, w1, up = (lin(f"model.experts.0.{p}", 3, 4) for p in ("gate_proj", "w1", "up_proj"))
bad("r92-one-part-twice", ONE, adapter(gate, w1))
zero = M([[0] * 4] * 6)
ok("r92-two-parts", ONE, adapter(gate, up),
   {"model.experts.gate_up_proj": [gate.d.at((6, 4)) + up.d.at((6, 4), 3), zero]})

# --- 6: the target of nn.MultiheadAttention
MHA = tensors_of({"model.attn.in_proj_weight": ("F32", (12, 4)),
                  "model.attn.out_proj.weight": ("BF16", (4, 4)),
                  "model.other.weight": ("F32", (12, 4)),
                  "model.other.in_proj_weight": ("F32", (12, 4))})
inp, plain, outer = lin("model.attn", 12, 4), lin("model.attn.out_proj", 4, 4), lin(
    "model.attn.base_layer.out_proj", 4, 4)
twice = [("multihead-attention", "model.attn")]
ok("attention-in-proj", MHA, adapter(inp), {"model.attn.in_proj_weight": inp.d})
for answer, times in (("", 1), ("out-proj-twice", 2)):
    ok("attention-out-proj-" + (answer and "twice" or "once"), MHA,
       adapter(inp, outer, requires=twice), answers=answer,
       want={"model.attn.in_proj_weight": inp.d, "model.attn.out_proj.weight": times * outer.d})
MHA_BIAS = MHA | tensors_of({"model.attn.in_proj_bias": ("F32", (12,)),
                             "model.attn.out_proj.bias": ("F32", (4,))})
with_bias = [lin("model.attn", 12, 4, bias=noise("in", "F32", (12,))),
             lin("model.attn.base_layer.out_proj", 4, 4, bias=noise("out", "F32", (4,)))]
biases = [x.s * x.roles["bias"].matrix().t for x in with_bias]
for answer, times in (("", 1), ("out-proj-twice", 2)):
    ok("attention-biases-" + (answer and "twice" or "once"), MHA_BIAS, answers=answer,
       adapters=adapter(
        *with_bias, requires=twice + [("lora-bias", x.module) for x in with_bias]), want={
            "model.attn.in_proj_weight": with_bias[0].d, "model.attn.in_proj_bias": biases[0],
            "model.attn.out_proj.weight": times * with_bias[1].d,
            "model.attn.out_proj.bias": biases[1]})
bad("r88-no-in-proj-bias", MHA, adapter(with_bias[0], requires=[("lora-bias", "model.attn")]))
weight_too = lin("model.other", 12, 4)
ok("attention-with-weight", MHA, adapter(weight_too), {"model.other.weight": weight_too.d})
bad("r92-out-proj-by-two-names", MHA, adapter(plain, outer, requires=twice))
ok("r92-out-proj-of-two-adapters", MHA, [adapter(plain), adapter(outer, requires=twice)],
   {"model.attn.out_proj.weight": plain.d + outer.d})

# --- 6.1
SHAPES = tensors_of({f"h.{i}.q.weight": ("F32", s) for i, s in enumerate((
    (4, 6), (6, 4), (4, 6, 1), (4, 6, 1, 1), (6, 4, 1), (24,), (4, 6, 2), (4, 5), (2, 12),
    (4, 4)))})
for name, i, m, n in (("transposed-of-3-dimensions", 4, 4, 6), ("one-dimension", 5, 4, 6),
                      ("a-kernel", 6, 4, 6), ("other-columns", 7, 4, 6), ("same-elements", 8, 4, 6),
                      ("square", 9, 4, 6)):
    bad("r93-" + name, SHAPES, adapter(lin(f"h.{i}.q", m, n)))
for name, i in (("as-it-is", 0), ("transposed", 1), ("3-dimensions", 2), ("4-dimensions", 3)):
    x = lin(f"h.{i}.q", 4, 6)
    ok("r93-" + name, SHAPES, adapter(x), {f"h.{i}.q.weight": x.d.t if i == 1 else x.d})

# c_attn and q are square. votes: c_attn of layer 1, c_fc and mlp are stored as they are named
SQUARE = tensors_of({f"h.0.{p}.weight": ("F32", (4, 4))
                     for p in ("c_attn", "c_proj", "q", "q_attn")}
                    | {f"{i}.weight": ("F32", (6, 4)) for i in
                       ("h.1.c_attn", "h.2.c_attn", "h.1.c_fc", "h.1.q", "h.1.mlp", "h.3.c_attn")})
# case | square layer | voters, + if transposed | model type | orientation | answer | transposed
TABLE = """
leaf-votes-yes          | c_attn | +1.c_attn            | llama      |     |   | yes
leaf-votes-no           | c_attn | -1.c_attn            | gpt2       | nxm | 1 | no
leaf-votes-yes-q        | q      | +1.q                 |            |     |   | yes
leaf-votes-2-to-1       | c_attn | +1.c_attn -2.c_attn +3.c_attn | bert |  |   | yes
leaf-votes-1-to-1-gpt2  | c_attn | +1.c_attn -2.c_attn  | gpt2       |     |   | yes
leaf-votes-1-to-1-llama | c_attn | +1.c_attn -2.c_attn  | llama      | nxm |   | no
leaf-votes-1-to-1       | c_attn | +1.c_attn -2.c_attn  |            | nxm |   | R94
gpt2-c_attn             | c_attn |                      | gpt2       |     |   | yes
gpt2-q_attn             | q_attn |                      | gpt2       | mxn | 2 | yes
gpt2-q                  | q      |                      | gpt2       | nxm | 1 | no
openai-gpt              | c_proj |                      | openai-gpt |     |   | yes
imagegpt                | c_attn |                      | imagegpt   |     |   | yes
decision_transformer    | c_attn |                      | decision_transformer | | | yes
llama-c_attn            | c_attn | +1.c_fc              | llama      | nxm | 1 | no
names-vote-yes          | c_attn | +1.c_fc              |            | mxn | 2 | yes
names-vote-no           | c_attn | -1.c_fc              |            | nxm | 1 | no
others-do-not-vote      | c_attn | +1.mlp               |            |     |   | no
names-do-not-vote-for-q | q      | +1.c_fc              |            | nxm |   | no
answer-1                | c_attn |                      |            | nxm | 1 | yes
answer-2                | c_attn |                      |            | nxm | 2 | no
answer-not-for-q        | q      |                      |            | nxm | 1 | no
nxm                     | c_attn |                      |            | nxm |   | R94
nxm-others-vote         | c_proj | +1.mlp               |            | nxm |   | R94
mxn                     | c_attn |                      |            | mxn |   | no
no-orientation          | c_attn |                      |            |     |   | no
nxm-q                   | q      |                      |            | nxm |   | no
"""
for line in TABLE.strip().splitlines():
    name, leaf, voters, model, orientation, answer, result = (x.strip() for x in line.split("|"))
    voters = [lin("h." + v[1:], *((4, 6) if v[0] == "+" else (6, 4))) for v in voters.split()]
    square = lin(f"h.0.{leaf}", 4, 4)
    a = adapter(square, *voters, orientation=orientation)
    more = {"config": {"model_type": model} if model else None,
            "answers": answer and f"linear-input={answer}"}
    if result == "R94":
        bad("r94-" + name, SQUARE, a, **more)
    else:
        want = {f"h.0.{leaf}.weight": square.d.t if result == "yes" else square.d}
        ok("r94-" + name, SQUARE, a, want | {v.module + ".weight": v.d if v.d.rows[5:] else v.d.t
                                             for v in voters}, **more)

# --- 6.2, 6.3
TOKENS = tensors_of({"embed.weight": ("BF16", (7, 4)), "square.weight": ("F32", (4, 4)),
                     "turned.weight": ("F32", (4, 7)), "long.weight": ("F32", (8, 4)),
                     "cube.weight": ("F32", (7, 4, 1))})
for name, module in (("turned", "turned"), ("another-vocabulary", "long"),
                     ("3-dimensions", "cube")):
    bad("r95-" + name, TOKENS, adapter(lin(module, 4, 7, kind="embedding")))
for module, n in (("embed", 7), ("square", 4)):
    x = lin(module, 4, n, r=2, kind="embedding")
    ok("r95-" + module, TOKENS, adapter(x), {module + ".weight": x.d.t})

CONV = tensors_of({"c1.weight": ("F32", (4, 2, 3)), "c2.weight": ("BF16", (4, 2, 3, 2)),
                   "c3.weight": ("F32", (2, 3, 1, 2, 2)), "flat.weight": ("F32", (4, 6)),
                   "k1.weight": ("F32", (4, 6, 1))})
yes = [("convolution", "c")]
for name, module, a, b in (
        ("groups", "c1", (2, 4, 3), (4, 2, 1)), ("kernel", "c1", (2, 2, 2), (4, 2, 1)),
        ("outputs", "c1", (2, 2, 3), (3, 2, 1)), ("dimensions-of-a", "c2", (2, 2, 6), (4, 2, 1, 1)),
        ("dimensions-of-b", "c2", (2, 2, 3, 2), (4, 2)),
        ("target-of-2-dimensions", "flat", (2, 6), (4, 2)),
        ("kernel-of-b", "c1", (2, 2, 3), (2, 2, 2)), ("ranks", "c1", (2, 2, 3), (4, 3, 1))):
    bad("r96-" + name, CONV, adapter(Layer(module, a, b, kind="conv", r=2), requires=yes))
for module, a, b in (("c1", (2, 2, 3), (4, 2, 1)), ("c2", (2, 2, 3, 2), (4, 2, 1, 1)),
                     ("c3", (2, 3, 1, 2, 2), (2, 2, 1, 1, 1)), ("k1", (2, 6, 1), (4, 2, 1)),
                     ("flat", (2, 6, 1, 1), (4, 2, 1, 1))):
    x = Layer(module, a, b, kind="conv", r=2)
    ok("r96-" + module, CONV, adapter(x, requires=yes), {module + ".weight": x.d})

# --- 6.4
BIAS = tensors_of({"q.weight": ("F32", (4, 6)), "q.bias": ("F16", (4,)),
                   "k.weight": ("F32", (4, 6)),
                   "k.bias": ("F32", (6,)), "v.weight": ("F32", (4, 6)), "v.bias": ("F32", (1, 4)),
                   "t.weight": ("F32", (6, 4)), "t.bias": ("F32", (4,)),
                   "c.weight": ("F32", (4, 2, 3)),
                   "c.bias": ("F32", (4,)), "n.weight": ("F32", (4, 6))})


def biased_layer(module, **more):
    return lin(module, 4, 6, bias=noise(module + "bias", "F32", (4,)), **more)


for name, module, also in (("inputs", "k", []), ("two-dimensions", "v", [])):
    bad("r97-" + name, BIAS, adapter(biased_layer(module), requires=[("lora-bias", module)]), *also)
bad("r88-no-bias", BIAS, adapter(biased_layer("n"), requires=[("lora-bias", "n")]))
for module in ("q", "t"):
    x = biased_layer(module, alpha=3)
    b = M([[v] for v in x.roles["bias"].matrix().flat()])
    ok("r97-" + module, BIAS, (adapter(x, requires=[("lora-bias", module)]), 0.5),
       {module + ".weight": Fraction(1, 2) * (x.d.t if module == "t" else x.d),
        module + ".bias": Fraction(1, 2) * x.s * b})
conv = Layer("c", (1, 2, 3), (4, 1, 1), kind="conv", r=1, bias=noise("cb", "F32", (4,)))
b = M([[v] for v in conv.roles["bias"].matrix().flat()])
ok("bias-of-conv", BIAS, adapter(conv, requires=[("lora-bias", "c"), ("convolution", "c")]),
   {"c.weight": conv.d, "c.bias": conv.s * b})

# --- 6.5
DORA = tensors_of({
    "q.weight": ("BF16", (4, 6)), "t.weight": ("F16", (6, 4)), "e.weight": ("F32", (7, 4)),
    "c.weight": ("F64", (4, 2, 3)), "q.bias": ("F32", (4,)), "s.weight": ("F32", (4, 4)),
    "p.weight": exactly("BF16", (2, 2), [3, 4, 0, 0]),
    "z.weight": exactly("F32", (2, 2), [1, 0, -2, 1]),
    "x.weight": T("F32", (3, 2), [0x7FC00001, 0x40000000, 0x7F800000, 0xC0000000, 0x3F800000, 0])})


def dora(module, m, n, kind="linear", count=None, **more):
    return lin(module, m, n, kind=kind, **{"magnitude": noise(module + "mag", "F32", (count or m,))}
               | more)


for name, layer in (("of-inputs", dora("q", 4, 6, count=6)),
                    ("of-inputs-transposed", dora("t", 4, 6, count=6)),
                    ("of-the-vocabulary", dora("e", 4, 7, kind="embedding", count=7))):
    bad("r98-" + name, DORA, adapter(layer, requires=[("dora", layer.module)]))
dq, dt, ds = dora("q", 4, 6), dora("t", 4, 6), dora("s", 4, 4, magnitude=noise("s", "F32", (1, 4)))
de = dora("e", 4, 7, kind="embedding")
for name, layer, columns in (("rows", dq, False), ("columns", dt, True), ("embedding", de, True),
                             ("any-shape", ds, False)):
    t = DORA[layer.module + ".weight"]
    ok("r98-" + name, DORA, adapter(layer, requires=[("dora", layer.module)]),
       {layer.module + ".weight": rescaled(t, layer.d.t if columns else layer.d,
                                           layer.roles["magnitude"], columns)})
dc = Layer("c", (1, 2, 3), (4, 1, 1), kind="conv", r=1, magnitude=noise("c", "F64", (1, 4, 1, 1)))
ok("dora-conv", DORA, adapter(dc, requires=[("dora", "c"), ("convolution", "c")]),
   {"c.weight": rescaled(DORA["c.weight"], dc.d, dc.roles["magnitude"])})
db = dora("q", 4, 6, bias=noise("qb", "F32", (4,)))
ok("dora-bias-is-not-rescaled", DORA, adapter(db, requires=[("dora", "q"), ("lora-bias", "q")]),
   {"q.weight": rescaled(DORA["q.weight"], db.d, db.roles["magnitude"]),
    "q.bias": db.s * M([[v] for v in db.roles["bias"].matrix().flat()])})


def factors(module, a, b, mag, **more):
    """s = 1, and a magnitude of these bits or numbers."""
    m = mag if isinstance(mag, T) else exactly("F32", (len(b),), mag)
    return Layer(module, exactly("F32", (1, len(a)), a), exactly("F32", (len(b), 1), b), alpha=1,
                 magnitude=m, **more)


MINUS = 1 << 31
# The example of section 16, on its first row; the other row of the base is 0 and becomes (0, 1).
example = factors("p", [0, 1], [0, 1], [2, 3])
ok("dora-example", DORA, adapter(example, requires=[("dora", "p")]),
   {"p.weight": T("BF16", (2, 2), [0x3F9A, 0x3FCD, 0, 0x4040])})
# Both rows of V are (3, 4), and m/5 = 257/256 and 259/256: 4·m/5 lies half way, once below even.
tie = factors("p", [3, 4], [0, 1], [Fraction(1285, 256), Fraction(1295, 256)])
ok("dora-half-way", DORA, adapter(tie, requires=[("dora", "p")]), {"p.weight": T("BF16", (2, 2), [
    rn("BF16", v * Fraction(i, 256)) for i in (257, 259) for v in (3, 4)])})
# V = (1, 0), (−2, 0), as Σ = (0, 0), (0, −1): zeros with the signs of m and V
signs = factors("z", [0, -1], [0, 1], T("F32", (2,), [MINUS, 0xC0A00000]))
ok("dora-signs-of-0", DORA, adapter(signs, requires=[("dora", "z")]),
   {"z.weight": T("F32", (2, 2), [MINUS, MINUS, 0x40A00000, MINUS])})
zeros = factors("z", [0, -1], [0, 1], T("F32", (2,), [0, MINUS]))
ok("dora-magnitude-0", DORA, adapter(zeros, requires=[("dora", "z")]),
   {"z.weight": T("F32", (2, 2), [0, 0, 0, MINUS])})
gone = factors("p", [0, 1], [0, 0], [2, 3])
bad("r87-dora-norm-of-0", DORA, adapter(gone, requires=[("dora", "p")]))
NAN = 0x7FC0
ok("r87-dora-norm-of-0-allowed", DORA, adapter(gone, requires=[("dora", "p")]), any_nan=True,
   answers="allow-nonfinite", want={"p.weight": T("BF16", (2, 2), [0x3F9A, 0x3FCD, NAN, NAN])})
# Rows of the base: (NaN, 2), (∞, −2), (1, 0)
wild = factors("x", [0, 0], [1, 1, 1], [1, 2, -3])
bad("r87-dora-nan-in-the-row", DORA, adapter(wild, requires=[("dora", "x")]))
ok("dora-nan-and-infinity-in-the-base", DORA, adapter(wild, requires=[("dora", "x")]), any_nan=True,
   answers="allow-nonfinite", want={"x.weight": T("F32", (3, 2), [
       0x7FC00000, 0x7FC00000, 0x7FC00000, MINUS, 0xC0400000, MINUS])})
infinite = factors("z", [0, -1], [0, 1], T("F32", (2,), [0x7F800000, 0x7FC00000]))
ok("dora-infinite-magnitude", DORA, adapter(infinite, requires=[("dora", "z")]), any_nan=True,
   answers="allow-nonfinite", want={"z.weight": T("F32", (2, 2), [0x7F800000] + 3 * [0x7FC00000])})

bad("r99-half", DORA, (adapter(dq, requires=[("dora", "q")]), 0.5))
bad("r99-minus", DORA, (adapter(dq, requires=[("dora", "q")]), -1))
ok("r99-half-of-another", DORA, [adapter(dq, requires=[("dora", "q")]),
                                 (adapter(lin("s", 4, 4)), 0.5)],
   {"q.weight": rescaled(DORA["q.weight"], dq.d, dq.roles["magnitude"]),
    "s.weight": Fraction(1, 2) * lin("s", 4, 4).d})
first = adapter(dq, requires=[("dora", "q")])
second = dora("q", 4, 6, salt="second")
bad("r100-another-term", DORA, [first, adapter(lin("q", 4, 6, salt="second"))])
bad("r100-another-magnitude", DORA, [first, adapter(second, requires=[("dora", "q")])])
bad("r100-rows", DORA, [first, adapter(rows("q.weight", [1], noise("r", "F32", (1, 6))))], "R121")
fresh = noise("fresh", "BF16", (4, 6))
ok("r100-replaced-first", DORA, adapter(dq, replace("q.weight", fresh), requires=[("dora", "q")]),
   {"q.weight": rescaled(fresh, dq.d, dq.roles["magnitude"])})
ok("r100-two-targets", DORA, [first, adapter(ds, requires=[("dora", "s")])],
   {"q.weight": rescaled(DORA["q.weight"], dq.d, dq.roles["magnitude"]),
    "s.weight": rescaled(DORA["s.weight"], ds.d, ds.roles["magnitude"])})
