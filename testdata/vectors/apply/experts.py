"""R104-R110: experts (section 8)."""
from exact import M, T, noise
from kit import Layer, adapter, bad, lin, ok, tensors_of

X = "model.layers.0.mlp.experts"
UP, DOWN = f"{X}.gate_up_proj", f"{X}.down_proj"
PATHS = [("experts", UP), ("experts", DOWN)]


def stack(module, m, n, r=2, E=2, kind="expert", **more):
    return Layer(module, (E * r, n), (m, r * E), kind=kind, r=r, **more)


def turned(matrices):
    return [d.t for d in matrices]


def modules(names, shape=(3, 4), parent=X, E=2):
    return {f"{parent}.{e}.{p}.weight": ("F32", s) for e in range(E)
            for p, s in zip(names, (shape, shape, shape[::-1]))}


# --- 8.1: 2 experts with 4 inputs and 3 features inside
STACKED = tensors_of({UP: ("F32", (2, 6, 4)), DOWN: ("F32", (2, 4, 3)),
                      "model.layers.0.mlp.gate.weight": ("F32", (2, 4))})
TURNED = tensors_of({UP: ("F32", (2, 4, 6)), DOWN: ("F32", (2, 3, 4))})
NEW, OLD = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")
up, down = stack(X + ".base_layer", 6, 4), stack(X, 4, 3)
group = adapter(up, down, requires=PATHS)
ok("r104-group", STACKED, group, {UP: up.experts(2), DOWN: down.experts(2)})
ok("r104-short-paths", STACKED, adapter(up, down, requires=[
    ("experts", "experts.gate_up_proj"), ("experts", "mlp.experts.down_proj")]),
   {UP: up.experts(2), DOWN: down.experts(2)})
ok("experts-slowest", STACKED, group, {UP: up.experts(2, True), DOWN: down.experts(2, True)},
   answers="expert-slowest")
ok("experts-first-dimension", TURNED, group,
   {UP: turned(up.experts(2)), DOWN: turned(down.experts(2))})
ok("experts-first-dimension-slowest", TURNED, group, answers="expert-slowest",
   want={UP: turned(up.experts(2, True)), DOWN: turned(down.experts(2, True))})
for name, parts in (("new", NEW), ("old", OLD)):
    base = tensors_of(modules(parts))
    want = {f"{X}.{e}.{parts[2]}.weight": down.experts(2)[e] for e in range(2)}
    for e in range(2):
        d = up.experts(2)[e]
        want |= {f"{X}.{e}.{parts[0]}.weight": d[:3], f"{X}.{e}.{parts[1]}.weight": d[3:]}
    ok("experts-in-modules-" + name, base, group, want)
only = stack(X, 4, 3)
ok("r104-one", STACKED, adapter(only, requires=PATHS[1:]), {DOWN: only.experts(2)})
bad("r104-layer-too-few", STACKED, adapter(only, requires=PATHS))
bad("r104-layer-too-many", STACKED, adapter(up, down, requires=PATHS[:1]))
bad("r104-paths-of-another", STACKED,
    adapter(only, requires=[("experts", "other.experts.down_proj")]))
router = Layer("model.layers.0.mlp.gate", (2, 4), (2, 2), kind="expert", r=2)
ok("experts-router", STACKED, adapter(router, requires=[("experts", "mlp.gate.weight")]),
   {"model.layers.0.mlp.gate.weight": router.d})
bad("r106-router-turned", STACKED, adapter(Layer("model.layers.0.mlp.gate", (2, 2), (4, 2),
                                                 kind="expert",
                                                 r=2), requires=[("experts", "mlp.gate.weight")]))

for name, a, b in (("rows-of-a", (3, 3), (4, 4)), ("columns-of-b", (4, 3), (4, 3)),
                   ("no-expert", (0, 3), (4, 0)), ("3-dimensions", (2, 2, 3), (4, 4))):
    bad("r105-" + name, STACKED, adapter(Layer(X, a, b, kind="expert", r=2), requires=PATHS[1:]))
ok("r105-3-experts-of-rank-1", {DOWN: ("BF16", (3, 4, 3))},
   adapter(three := stack(X, 4, 3, r=1, E=3), requires=PATHS[1:]), {DOWN: three.experts(3)})

# Orders: the list has gate_up_proj first; here the innermost layer is the one for down_proj.
swapped = [stack(X + ".base_layer", 4, 3), stack(X, 6, 4)]
ok("r106-other-order", STACKED, adapter(*swapped, requires=PATHS),
   {DOWN: swapped[0].experts(2), UP: swapped[1].experts(2)})
bad("r106-other-order-other-scale", STACKED, adapter(stack(X + ".base_layer", 4, 3, alpha=6),
                                                     swapped[1],
                                                     requires=PATHS))
bad("r106-other-order-other-rank", STACKED, adapter(stack(X + ".base_layer", 4, 3, r=1), swapped[1],
                                                    requires=PATHS))
bad("r106-no-order", STACKED, adapter(up, stack(X, 6, 4, salt="2"), requires=PATHS))
bad("r106-three-experts", STACKED, adapter(stack(X, 4, 3, E=3), requires=PATHS[1:]))
ALIKE = tensors_of({f"{X}.{p}": ("F32", (2, 3, 4)) for p in ("w1", "w3", "one", "two")})
alike = [stack(X + ".base_layer", 3, 4), stack(X, 3, 4)]
ok("r106-alike-in-the-list", ALIKE,
   adapter(*alike, requires=[("experts", X + ".w3"), ("experts", X + ".w1")]),
   {X + ".w1": alike[0].experts(2), X + ".w3": alike[1].experts(2)})
bad("r106-alike-others", ALIKE,
    adapter(*alike, requires=[("experts", X + ".one"), ("experts", X + ".two")]))
bad("r106-alike-one-other", ALIKE,
    adapter(*alike, requires=[("experts", X + ".one"), ("experts", X + ".w1")]))
GAP = tensors_of({n: t for n, t in modules(NEW, E=4).items() if ".2." not in n})
bad("r88-gap-in-the-modules", GAP, adapter(stack(X, 4, 3, E=4), requires=PATHS[1:]), "R106")
uneven = modules(NEW) | {f"{X}.1.down_proj.weight": ("F32", (4, 2))}
bad("r106-uneven-experts", tensors_of(uneven), adapter(only, requires=PATHS[1:]))
bad("r106-uneven-parts", tensors_of(modules(NEW) | {f"{X}.{e}.up_proj.weight": ("F32", (2, 4))
                                                    for e in range(2)}),
    adapter(stack(X, 5, 4), requires=PATHS[:1]))
bad("r106-one-module-more", tensors_of(modules(NEW, E=3)), adapter(only, requires=PATHS[1:]))

# Square experts: gate_up_proj is 4×4, and down_proj 4×2 is a witness where a layer has it
SQ = tensors_of({UP: ("F32", (2, 4, 4)), DOWN: ("F32", (2, 4, 2))})
TWO = tensors_of({UP: ("F32", (2, 4, 4)),
                  "model.layers.1.mlp.experts.down_proj": ("F32", (2, 4, 2)),
                  "model.layers.2.mlp.experts.down_proj": ("F32", (2, 2, 4))})
# case | kind | dimension that the witness reads | model type | answer | dimension
TABLE = """
answer-1-first          | expert         | 2 |               | 1 | 1
answer-2                | expert-first   |   | gpt_oss       | 2 | 2
answer-2-expert         | expert         |   | qwen3_vl_moe  | 2 | 2
second-before-witness   | expert-second  | 1 | gpt_oss       |   | 2
second                  | expert-second  |   |               |   | 2
witness-1               | expert         | 1 |               |   | 1
witness-2               | expert         | 2 | qwen3_vl_moe  |   | 2
witness-before-first    | expert-first   | 2 | mixtral       |   | 2
witness-before-outputs  | expert-outputs | 2 | mixtral       |   | 2
expert                  | expert         |   | mixtral       |   | R107
expert-no-type          | expert         |   |               |   | R107
first-qwen3_vl_moe      | expert-first   |   | qwen3_vl_moe  |   | R107
first                   | expert-first   |   |               |   | 1
first-of-transposed     | expert-first   |   | gpt_oss       |   | 1
inputs-no-type          | expert-inputs  |   |               |   | R107
outputs-no-type         | expert-outputs |   |               |   | R107
inputs-gpt_oss          | expert-inputs  |   | gpt_oss       |   | R107
outputs-aria            | expert-outputs |   | aria          |   | R107
inputs-aria_text        | expert-inputs  |   | aria_text     |   | R107
inputs-privacy          | expert-inputs  |   | openai_privacy_filter | | R107
outputs-qwen3_vl_moe    | expert-outputs |   | qwen3_vl_moe  |   | R107
outputs-mixtral         | expert-outputs |   | mixtral       |   | 1
inputs-mixtral          | expert-inputs  |   | mixtral       |   | 2
"""
for line in TABLE.strip().splitlines():
    name, kind, witness, model, answer, reads = (x.strip() for x in line.split("|"))
    square = stack(X + ".base_layer" if witness else X, 4, 4, kind=kind)
    parts, want = [square], {UP: square.experts(2) if reads == "2" else turned(square.experts(2))}
    if witness:
        parts.append(stack(X, *((4, 2) if witness == "2" else (2, 4))))
        want[DOWN] = parts[1].experts(2) if witness == "2" else turned(parts[1].experts(2))
    a = adapter(*parts, requires=PATHS if witness else PATHS[:1])
    more = {"config": {"model_type": model} if model else None,
            "answers": answer and f"expert-input={answer}"}
    if reads == "R107":
        bad("r107-" + name, SQ, a, **more)
    else:
        ok("r107-" + name, SQ, a, want, **more)
differ = [stack(X, 4, 4, kind="expert-inputs"), stack("model.layers.1.mlp.experts", 4, 2),
          stack("model.layers.2.mlp.experts", 4, 2)]
paths = [PATHS[0], *(("experts", f"model.layers.{i}.mlp.experts.down_proj") for i in (1, 2))]
bad("r107-witnesses-differ", TWO, adapter(*differ, requires=paths),
    config={"model_type": "mixtral"})
away = [stack(X, 4, 4), differ[2]]
ok("r107-witness-in-another-group", TWO, adapter(*away, requires=paths[:1] + paths[2:]),
   {UP: turned(away[0].experts(2)),
    "model.layers.2.mlp.experts.down_proj": turned(away[1].experts(2))})

# --- 8.2
Y = X + ".1."


def one(d, at=0, shape=(6, 4), e=1):
    """The sums of a stack of 2: d in matrix e, from a row on, or transposed from a column on."""
    flat = M([[0] * shape[1]] * shape[0])
    return [d.at(shape, at) if i == e else flat for i in range(2)]


for name, module, m, at in (("gate_proj", Y + "gate_proj", 3, 0), ("up_proj", Y + "up_proj", 3, 3),
                            ("w1", Y + "w1", 3, 0), ("w3", Y + "w3", 3, 3),
                            ("gate_up_proj", Y + "gate_up_proj", 6, 0),
                            ("gate_up_projs", X + ".gate_up_projs.1", 6, 0)):
    x = lin(module, m, 4)
    ok("r108-" + name, STACKED, adapter(x), {UP: one(x.d, at)})
    ok(f"r108-{name}-transposed", TURNED, adapter(x), {UP: turned(one(x.d, at))})
for name, module in (("down_proj", Y + "down_proj"), ("w2", Y + "w2"),
                     ("down_projs", X + ".down_projs.1")):
    x = lin(module, 4, 3)
    ok("r108-" + name, STACKED, adapter(x), {DOWN: one(x.d, shape=(4, 3))})
x = lin("experts.0.w1", 3, 4)
ok("r108-no-path-before-experts", {"experts.gate_up_proj": ("F32", (2, 6, 4))}, adapter(x),
   {"experts.gate_up_proj": one(x.d, e=0)})
for name, module, m, n in (("no-such-expert", X + ".2.gate_proj", 3, 4),
                           ("rows", Y + "gate_proj", 2, 4),
                           ("columns", Y + "gate_proj", 3, 5),
                           ("part-of-all", Y + "gate_proj", 6, 4),
                           ("all-of-part", Y + "gate_up_proj", 3, 4),
                           ("down", Y + "down_proj", 4, 2)):
    bad("r108-" + name, STACKED, adapter(lin(module, m, n)))
bad("r108-4-dimensions", {UP: ("F32", (2, 6, 4, 1))}, adapter(lin(Y + "gate_up_proj", 6, 4)))
for name, model, answer, reads in (
        ("answer-1", "", "1", "1"), ("answer-2", "aria", "2", "2"), ("no-type", "", "", "R107"),
        ("qwen3_vl_moe", "qwen3_vl_moe", "", "R107"), ("aria", "aria", "", "1"),
        ("mixtral", "mixtral", "", "2")):
    x = lin(Y + "up_proj", 2, 4)
    more = {"config": {"model_type": model} if model else None,
            "answers": answer and f"expert-input={answer}"}
    if reads == "R107":
        bad("r107-one-expert-" + name, SQ, adapter(x), **more)
    else:
        d = one(x.d, 2, (4, 4))
        ok("r107-one-expert-" + name, SQ, adapter(x), {UP: turned(d) if reads == "1" else d},
           **more)
for model in ("gpt_oss", "openai_privacy_filter"):
    config = {"model_type": model}
    bad(f"r109-{model}-gate", TURNED, adapter(lin(Y + "gate_proj", 3, 4)), config=config)
    bad(f"r109-{model}-w3", TURNED, adapter(lin(Y + "w3", 3, 4)), config=config)
    for part, m, n, name, shape in (("gate_up_proj", 6, 4, UP, (6, 4)), ("w2", 4, 3, DOWN, (4, 3))):
        x = lin(Y + part, m, n)
        ok(f"r109-{model}-{part}", TURNED, adapter(x), {name: turned(one(x.d, shape=shape))},
           config=config)
x = lin(Y + "w1", 3, 4)
ok("r109-aria-w1", TURNED, adapter(x), {UP: turned(one(x.d))}, config={"model_type": "aria"})

# --- 8.3
FACTORS = [("expert-factors", "factors of three dimensions")]


def each(module, m, n, E=(2, 2), r=1, **more):
    return Layer(module, (E[0], r, n), (E[1], m, r), kind="other", r=r, **more)


def products(x):
    def cut(t):
        n = t.shape[1] * t.shape[2]
        return [T(t.dtype, t.shape[1:], t.bits[i:i + n]).matrix() for i in range(0, len(t.bits), n)]
    A, B = cut(x.roles["A"]), cut(x.roles["B"])
    E = max(len(A), len(B))
    return [x.s * (B[e % len(B)] @ A[e % len(A)]) for e in range(E)]


for name, module, m, E, at in (("whole", UP, 6, (2, 2), 0), ("part", X + ".up_proj", 3, (2, 2), 3),
                               ("w1", X + ".w1", 3, (2, 2), 0), ("shared-a", UP, 6, (1, 2), 0),
                               ("shared-b", UP, 6, (2, 1), 0)):
    x = each(module, m, 4, E, r=2)
    sums = [d.at((6, 4), at) for d in products(x)]
    a = adapter(x, requires=FACTORS)
    ok("r110-" + name, STACKED, a, {UP: sums})
    ok(f"r110-{name}-transposed", TURNED, a, {UP: turned(sums)})
    for parts in (NEW, OLD):
        want = {f"{X}.{e}.{p}.weight": sums[e][3 * i:3 * i + 3] for e in range(2)
                for i, p in enumerate(parts[:2])}
        ok(f"r110-{name}-{parts[0]}-modules", tensors_of(modules(parts)), a, want)
x = each(X + ".w2", 4, 3)
ok("r110-down", STACKED, adapter(x, requires=FACTORS), {DOWN: products(x)})
for name, module, m, n, E, base in (
        ("experts", UP, 6, 4, (3, 3), STACKED), ("experts-differ", UP, 6, 4, (3, 2), STACKED),
        ("rows", UP, 5, 4, (2, 2), STACKED), ("columns", UP, 6, 5, (2, 2), STACKED),
        ("part-of-all", X + ".up_proj", 6, 4, (2, 2), STACKED),
        ("rows-of-modules", UP, 5, 4, (2, 2), tensors_of(modules(NEW))),
        ("one-module-more", UP, 6, 4, (2, 2), tensors_of(modules(NEW, E=3))),
        ("turned-modules", UP, 4, 6, (2, 2), tensors_of(modules(NEW)))):
    bad("r110-" + name, base, adapter(each(module, m, n, E), requires=FACTORS))
bad("r110-no-path", tensors_of({"model.up.weight": ("F32", (6, 4)), UP: ("F32", (2, 6, 4))}),
    adapter(each("model.up", 6, 4), requires=FACTORS), "R88")
bad("r110-ranks", STACKED, adapter(Layer(UP, (2, 2, 4), (2, 6, 1), kind="other", r=2),
                                   requires=FACTORS))
x = each(X + ".w1", 2, 4)
bad("r107-factors-no-type", SQ, adapter(x, requires=FACTORS))
ok("r107-factors-mixtral", SQ, adapter(x, requires=FACTORS), config={"model_type": "mixtral"},
   want={UP: [d.at((4, 4)) for d in products(x)]})
bad("r109-factors", TURNED, adapter(each(X + ".w1", 3, 4), requires=FACTORS),
    config={"model_type": "gpt_oss"})
