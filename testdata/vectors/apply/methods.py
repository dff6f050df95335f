"""R137-R139 and layers of spec/METHODS.md: the methods of LyCORIS, and differences."""
import hashlib
from math import prod

from exact import FORMATS, M, T, exactly, noise, rn, root, value
from kit import Fraction, Layer, adapter, bad, case, lin, tensors_of

FEATURE = {"hadamard": "hadamard", "kronecker": "kronecker", "output-scaling": "scaling",
           "input-scaling": "scaling"}


def fine(label, dtype, shape):
    """Numbers from 1/4 to 4 in magnitude, with all bits of their fractions."""
    e, f = FORMATS[dtype]
    n, width = prod(shape), (e + f + 8) // 8
    b = hashlib.shake_128(("fine" + label).encode()).digest(n * width)
    words = [int.from_bytes(b[i:i + width], "little") for i in range(0, len(b), width)]
    lowest = 2**(e - 1) - 3
    return T(dtype, shape, [(x >> e + f & 1) << e + f | lowest + (x >> f & 3) << f | x & 2**f - 1
                            for x in words])


class Method(Layer):
    """A layer of section 2. Roles are shapes or tensors; d is s·ΔW/s of all but scalings."""

    def __init__(self, module, kind, r=1, alpha=None, scale=None, dtype="F32", salt="", **roles):
        self.module, self.kind, self.r = module, kind, r
        self.roles = {k: v if isinstance(v, T) else fine(module + k + salt, dtype, v)
                      for k, v in roles.items()}
        self.record = {"kind": kind, "module": module, "rank": r}
        alpha = 3 * r if alpha is None else alpha
        self.record |= {"scaling": "alpha/r", "alpha": alpha} if scale is None else \
            {"scaling": "fixed", "scale": scale}
        self.s = Fraction(alpha, r) if scale is None else Fraction(scale)
        ways = {"hadamard": self.hadamard, "kronecker": self.kronecker, "conv": self.conv}
        self.d = self.s * ways[kind]() if kind in ways else None

    def flat(self, role):
        return [value(self.roles[role].dtype, b) for b in self.roles[role].bits]

    def at(self, role, *place):
        """An element of a role."""
        shape, i = self.roles[role].shape, 0
        for n, x in zip(shape, place):
            i = i * n + x
        return value(self.roles[role].dtype, self.roles[role].bits[i])

    def of_core(self, a, t, b, turned=False):
        r, kernel = self.r, self.roles[t].shape[2:]
        K = prod(kernel)
        n = self.roles[b].shape[1]
        m = self.roles[a].shape[0 if turned else 1]
        core = self.flat(t)
        return M([[sum((self.at(a, i, x) if turned else self.at(a, x, i))
                       * core[(x * r + y) * K + k] * self.at(b, y, j)
                       for x in range(r) for y in range(r))
                   for j in range(n) for k in range(K)] for i in range(m)])

    def stored(self, q):
        if f"w{q}" in self.roles:
            return self.roles[f"w{q}"].matrix()
        if f"t{q}" in self.roles:
            return self.of_core(f"w{q}_a", f"t{q}", f"w{q}_b")
        return self.roles[f"w{q}_a"].matrix() @ self.roles[f"w{q}_b"].matrix()

    def hadamard(self):
        P, Q = self.stored(1).rows, self.stored(2).rows
        return M([[x * y for x, y in zip(p, q, strict=True)] for p, q in zip(P, Q, strict=True)])

    def kronecker(self):
        U, V = self.stored(1).rows, self.stored(2).rows
        o, i, p, J = len(U), len(U[0]), len(V), len(V[0])
        return M([[U[x // p][y // J] * V[x % p][y % J] for y in range(i * J)]
                  for x in range(o * p)])

    def conv(self):
        return self.of_core("B", "core", "A", turned=True)

    def scaling(self, t, row=0, count=None):
        """s·ΔW/s of a scaling for rows of a weight."""
        v, W = self.flat("vector"), t.matrix().rows
        K = prod(t.shape[2:])
        count = len(W) if count is None else count
        if self.kind == "output-scaling":
            return self.s * M([[v[i] * x for x in W[row + i]] for i in range(count)])
        return self.s * M([[v[c // K] * x for c, x in enumerate(W[row + i])]
                           for i in range(count)])

    @property
    def requires(self):
        out = [(FEATURE.get(self.kind, "convolution"), self.module)]
        out += [("tucker", self.module)] if "core" in self.roles else []
        out += [("input-magnitude", self.module)] if "input_magnitude" in self.roles else []
        return out + ([("dora", self.module)] if "magnitude" in self.roles else [])


def difference(target, t):
    return {"action": "difference", "target": target}, t


def file(*parts, requires=(), **more):
    need = {r for p in parts if isinstance(p, Method) for r in p.requires} | {*requires}
    need |= {("difference", p[0]["target"]) for p in parts
             if not isinstance(p, Layer) and p[0]["action"] == "difference"}
    return adapter(*parts, requires=need, minor=more.pop("minor", 2),
                   method=more.pop("method", "other:lycoris"), **more)


def near(name, base, adapters, want, **more):
    """A case in which an element may be a neighbour of the one that is wanted."""
    case("ok-" + name, [], base, adapters, want, near=True, **more)


def loha(module, m=4, N=(6,), r=2, **more):
    return Method(module, "hadamard", r, w1_a=(m, r), w1_b=(r, *N), w2_a=(m, r), w2_b=(r, *N), **more)


def loha_of_cores(module, kernel, m=4, n=3, r=2, **more):
    return Method(module, "hadamard", r, w1_a=(r, m), w1_b=(r, n), t1=(r, r, *kernel),
                  w2_a=(r, m), w2_b=(r, n), t2=(r, r, *kernel), **more)


def lokr(module, left, right, r=2, **more):
    return Method(module, "kronecker", r if "r" in left + right else 1, **LEFT[left], **RIGHT[right], **more)


LEFT = {"whole": {"w1": (2, 3)}, "product-r": {"w1_a": (2, 2), "w1_b": (2, 3)}}
RIGHT = {"whole": {"w2": (2, 2)}, "product-r": {"w2_a": (2, 2), "w2_b": (2, 2)},
         "core-r": {"w2_a": (2, 2), "t2": (2, 2, 1), "w2_b": (2, 2)}}
CORE = {"A": (2, 3, 1, 1), "B": (4, 2, 1, 1), "core": (2, 2, 2, 3)}

# --- Every kind, in each way to store it, for bases of every dtype. m is 4, N is 6 or 3·6.
for dtype in FORMATS:
    W = fine("w" + dtype, dtype, (4, 6))
    C = fine("c" + dtype, dtype, (4, 3, 2, 3))
    base, tag = {"q.weight": W, "c.weight": C, "b.weight": fine("b", dtype, (4,))}, dtype.lower()
    cases = {"hadamard": loha("q"), "hadamard-of-cores": loha_of_cores("c", (2, 3)),
             "hadamard-on-kernel": loha("c", N=(3, 2, 3)),
             "conv-core": Method("c", "conv", 2, **CORE)}
    cases |= {f"kronecker-{a}-{b}".replace("-r", ""): lokr("q", a, b) for a in LEFT for b in RIGHT}
    for name, x in cases.items():
        near(f"r137-{name}-{tag}", base, file(x), {x.module + ".weight": x.d})
    for module, t in ("q", W), ("c", C):
        for kind, n in ("output", 4), ("input", t.shape[1]):
            x = Method(module, f"{kind}-scaling", vector=(n,))
            near(f"r137-{kind}-scaling-{module}-{tag}", base, file(x), {module + ".weight": x.scaling(t)})
    for name, x in (("hadamard", loha("b", 1, (4,))), ("input-scaling", Method("b", "input-scaling", vector=(4,)))):
        if dtype == "F32":
            bad(f"r137-{name}-of-one-dimension", base, file(x))

# --- Kernels, factors of every dtype, scales
K1 = tensors_of({f"k{i}.weight": ("F32", (4, 3, *k)) for i, k in enumerate(((), (3,), (3, 2), (1, 2, 2)))})
for i, k in enumerate(((1,), (3,), (3, 2), (1, 2, 2))):
    x = loha_of_cores(f"k{i}", k)
    near(f"r137-cores-of-kernel-{i}", K1, file(x), {f"k{i}.weight": x.d})
    x = Method(f"k{i}", "kronecker", w1=(2, 1), w2=(2, 3, *(k if i else ())))
    near(f"r137-kronecker-of-kernel-{i}", K1, file(x), {f"k{i}.weight": x.d})
    x = Method(f"k{i}", "kronecker", 2, w1=(2, 3), w2_a=(2, 2), w2_b=(2, 1, *k))
    near(f"r137-kronecker-product-of-kernel-{i}", K1, file(x), {f"k{i}.weight": x.d})
    x = Method(f"k{i}", "conv", 2, A=(2, 3, *(1 for _ in k)), B=(4, 2, *(1 for _ in k)), core=(2, 2, *k))
    near(f"r137-conv-core-of-kernel-{i}", K1, file(x), {f"k{i}.weight": x.d})
Q = tensors_of("q k v")
for dtype in FORMATS:
    x = loha("q", 2, (3,), dtype=dtype)
    near(f"r137-factors-{dtype.lower()}", Q, file(x), {"q.weight": x.d})
for name, more in (("alpha-1", {"alpha": 1}), ("alpha-0", {"alpha": 0}), ("fixed", {"scale": 1}), ("fixed-negative", {"scale": -2})):
    x = loha("q", 2, (3,), **more)
    near("r137-" + name, Q, file(x), {"q.weight": x.d} if x.s else {})
x = loha("q", 2, (3,), alpha=2)
for w in (-0.5, 3.0):
    near(f"r137-weight-{w}", Q, (file(x), w), {"q.weight": Fraction(w) * x.d})
x = Method("q", "output-scaling", vector=(2,), axis=exactly("F32", (), [0]), salt="axis")
near("r137-axis-0-on-outputs", Q, file(x), {"q.weight": x.scaling(Q["q.weight"])})
x = Method("q", "output-scaling", vector=(2,), axis=exactly("F32", (1,), [1]), salt="axis")
near("r137-axis-1-on-outputs", Q, file(x), {"q.weight": x.scaling(Q["q.weight"])}, comment="the kind counts")
x = loha("q", 2, (3,), salt="method")
near("r137-method-lora", Q, file(x, method="lora"), {"q.weight": x.d})
x = loha("transformer.q", 2, (3,))
near("r137-prefix", Q, file(x), {"q.weight": x.d})

# --- Σ is 0: bits stay. w + Σ is 0, or small beside w
Z = {"q.weight": exactly("F32", (2, 2), [1, 2, 0, -3]), "k.weight": exactly("BF16", (1, 2), [1, -2])}
Z["q.weight"].bits[2] = 1 << 31
x = Method("q", "input-scaling", scale=1, vector=exactly("F32", (2,), [0, 0]))
near("r137-scaling-by-0", Z, file(x), {})
x = Method("q", "output-scaling", scale=1, vector=exactly("F32", (2,), [1, 1]))
near("r137-scaling-of-minus-0", Z, file(x), {"q.weight": x.scaling(Z["q.weight"])})
x = Method("k", "hadamard", 2, scale=1, w1_a=exactly("F32", (1, 2), [1, 2**-30]), w1_b=exactly("F32", (2, 2), [-1, 2, 1, 1]),
           w2_a=exactly("F32", (1, 2), [1, 0]), w2_b=exactly("F32", (2, 2), [1, 1, 5, 5]))
near("r137-cancels", Z, file(x), {"k.weight": x.d})
x = Method("k", "hadamard", 2, scale=1, w1_a=exactly("F32", (1, 2), [1, 2**-60]), w1_b=exactly("F32", (2, 2), [-1, 2, 1, 1]),
           w2_a=exactly("F32", (1, 2), [1, 0]), w2_b=exactly("F32", (2, 2), [1, 1, 5, 5]))
near("r137-cancels-to-2-60", Z, file(x), {"k.weight": x.d}, comment="a sum in float64 is 0 here")

# --- Several layers on one element
x, y, z = loha("q", 2, (3,)), lin("q", 2, 3), Method("q", "kronecker", w1=(1, 1), w2=(2, 3))
near("r92-with-lora-of-another", Q, [file(x), adapter(y)], {"q.weight": x.d + y.d})
near("r92-three-adapters", Q, [(file(x), 0.5), adapter(y), file(z)], {"q.weight": Fraction(1, 2) * x.d + y.d + z.d})
near("r92-one-adapter", Q, file(x, lin("k", 2, 3), Method("v", "output-scaling", vector=(2,))), {
    "q.weight": x.d, "k.weight": lin("k", 2, 3).d,
    "v.weight": Method("v", "output-scaling", vector=(2,)).scaling(Q["v.weight"])})

# --- Shapes that differ from the target
for name, m in (("rows", loha("q", 3, (3,))), ("columns", loha("q", 2, (4,))), ("turned", loha("q", 3, (2,))),
                ("kronecker-rows", Method("q", "kronecker", w1=(2, 1), w2=(2, 3))),
                ("kronecker-columns", Method("q", "kronecker", w1=(1, 3), w2=(2, 2))),
                ("outputs", Method("q", "output-scaling", vector=(3,))),
                ("inputs", Method("q", "input-scaling", vector=(2,))),
                ("all-elements", Method("q", "input-scaling", vector=(6,))),
                ("conv-core", Method("q", "conv", 2, A=(2, 3, 1), B=(2, 2, 1), core=(2, 2, 2)))):
    bad("r137-" + name, Q, file(m))
bad("r137-inputs-with-kernel", K1, file(Method("k1", "input-scaling", vector=(9,))))

# --- Magnitudes


def rescaled(t, sigma, magnitude, inputs=False, turned=False):
    v = t.matrix() + sigma
    K = prod(t.shape[2:])
    lines = (v.t if inputs != turned else v).rows
    step = K if inputs and not turned else 1
    groups = [lines[i:i + step] for i in range(0, len(lines), step)]
    out = []
    for g, b in zip(groups, magnitude.bits, strict=True):
        m, norm = value(magnitude.dtype, b), sum(x * x for line in g for x in line)
        sign = 1 << sum(FORMATS[t.dtype])
        out += [[rn(t.dtype, root(1, (m * x)**2 / norm)) | sign * ((m < 0) != (x < 0)) for x in line]
                for line in g]
    out = [*zip(*out)] if inputs != turned else out
    return T(t.dtype, t.shape, [b for line in out for b in line])


for kind, module, x in (("hadamard", "k2", lambda **m: loha("k2", 4, (3, 3, 2), **m)),
                        ("kronecker", "k0", lambda **m: Method("k0", "kronecker", w1=(2, 1), w2=(2, 3), **m)),
                        ("conv-core", "k3", lambda **m: Method("k3", "conv", 2, A=(2, 3, 1, 1, 1), B=(4, 2, 1, 1, 1), core=(2, 2, 1, 2, 2), **m))):
    for role, n in ("magnitude", 4), ("input_magnitude", 3):
        y, w = x(**{role: (n,)}), module + ".weight"
        near(f"r98-{kind}-{role.replace('_', '-')}", K1, file(y), {w: rescaled(K1[w], y.d, y.roles[role], n == 3)})
        bad(f"r98-{kind}-{role.replace('_', '-')}-of-5", K1, file(x(**{role: (5,)})))
L = tensors_of({"q.weight": ("F32", (4, 6)), "t.weight": ("F32", (6, 4)), "c.weight": ("BF16", (4, 6, 2))})
m6 = noise("m6", "F32", (6,))
for name, x, turned in (("linear", lin("q", 4, 6, input_magnitude=m6), False), ("transposed", lin("t", 4, 6, input_magnitude=m6), True),
                        ("conv", Layer("c", (1, 6, 2), (4, 1, 1), kind="conv", input_magnitude=m6), False)):
    w = x.module + ".weight"
    also = [("input-magnitude", x.module)] + [("convolution", "c")] * (name == "conv")
    d = x.d if name != "conv" else x.s * (x.B @ x.A)
    near(f"r98-{name}-input-magnitude", L, file(x, requires=also), {w: rescaled(L[w], d.t if turned else d, m6, True, turned)})
x = lin("q", 4, 6, input_magnitude=noise("m4", "F32", (4,)))
bad("r98-linear-input-magnitude-of-outputs", L, file(x, requires=[("input-magnitude", "q")]))
x = lin("q", 4, 6, input_magnitude=m6)
bad("r99-input-magnitude", L, (file(x, requires=[("input-magnitude", "q")]), 0.5))
bad("r100-input-magnitude-and-lora", L, [file(x, requires=[("input-magnitude", "q")]), adapter(lin("q", 4, 6, salt="z"))])
y = loha("q", input_magnitude=(6,))
bad("r100-two-input-magnitudes", L, [file(x, requires=[("input-magnitude", "q")]), file(y)])
for kind, n in ("output", 4), ("input", 6):
    s = Method("q", f"{kind}-scaling", vector=(n,))
    bad(f"r138-{kind}-scaling-and-magnitude", L, [file(x, requires=[("input-magnitude", "q")]), file(s)], "R100")
near("r138-of-other-targets", L, file(lin("t", 4, 6, input_magnitude=m6), s, requires=[("input-magnitude", "t")]),
     {"t.weight": rescaled(L["t.weight"], lin("t", 4, 6).d.t, m6, True, True), "q.weight": s.scaling(L["q.weight"])})
near("r138-with-lora", L, [file(s), adapter(lin("q", 4, 6))], {"q.weight": s.scaling(L["q.weight"]) + lin("q", 4, 6).d})

# --- Roles and features that a layer of the kind has not
bad("r76-axis-of-hadamard", Q, file(loha("q", 2, (3,), axis=(1,))))
bad("r76-magnitude-of-scaling", Q, file(Method("q", "output-scaling", vector=(2,), magnitude=(2,))))
bad("r76-core-of-linear", Q, file(lin("q", 2, 3, core=(1,)), requires=[("tucker", "q")]))
bad("r76-unknown-role", Q, file(loha("q", 2, (3,), w3=(1,))))
bad("r85-factor-of-integers", Q, file(Method("q", "output-scaling", vector=noise("v", "I32", (2,)))))
bad("r88-another-module", Q, file(loha("x", 2, (3,))))
x = Method("q", "hadamard", 1, scale=1, w1_a=exactly("F32", (2, 1), [2**60] * 2), w1_b=exactly("F32", (1, 3), [2**60] * 3),
           w2_a=exactly("F32", (2, 1), [2**30] * 2), w2_b=exactly("F32", (1, 3), [1] * 3))
bad("r87-hadamard", Q, file(x))

# --- Differences
D = tensors_of({"n.weight": ("F32", (4,)), "n.bias": ("BF16", (4,)), "q.weight": ("F16", (4, 6)), "c.weight": ("F32", (4, 3, 2)),
                "p": ("F64", (2, 3))})
for name, target, t in (("norm", "n.weight", fine("d1", "F32", (4,))), ("bias", "n.bias", fine("d2", "F32", (4,))),
                        ("matrix", "q.weight", fine("d3", "BF16", (4, 6))), ("kernel", "c.weight", fine("d4", "F16", (4, 3, 2))),
                        ("other-dimensions", "c.weight", fine("d7", "F32", (4, 6))),
                        ("more-dimensions", "q.weight", fine("d8", "F64", (4, 6, 1, 1)))):
    near("r139-" + name, D, file(difference(target, t)), {target: t.matrix()})
    if name in ("norm", "kernel"):
        near(f"r139-{name}-weight-0.25", D, (file(difference(target, t)), 0.25), {target: Fraction(1, 4) * t.matrix()})
for name, target, dtype, shape in (("columns", "q.weight", "F32", (4, 5)), ("turned", "q.weight", "F32", (6, 4)), ("flat", "q.weight", "F32", (24,)),
                                   ("column", "n.weight", "F32", (4, 1)), ("row", "n.weight", "F32", (1, 4)), ("norm-of-3", "n.weight", "F32", (3,)), ("integers", "n.weight", "I32", (4,)),
                                   ("bytes", "n.weight", "F8_E4M3", (4,))):
    bad("r139-" + name, D, file(difference(target, noise(name, dtype, shape))))
d, x = fine("dd", "F32", (4, 6)), loha("q")
near("r139-with-layer", D, file(x, difference("q.weight", d)), {"q.weight": x.d + d.matrix()})
near("r139-of-two-adapters", D, [file(difference("q.weight", d)), (file(difference("q.weight", fine("de", "F32", (4, 6)))), -1)],
     {"q.weight": d.matrix() + Fraction(-1) * fine("de", "F32", (4, 6)).matrix()})
near("r139-beside-a-layer", D, file(x, difference("n.bias", fine("d2", "F32", (4,)))), {"q.weight": x.d, "n.bias": fine("d2", "F32", (4,)).matrix()})
s = Method("q", "output-scaling", vector=(4,))
near("r139-with-scaling", D, file(s, difference("q.weight", d)), {"q.weight": s.scaling(D["q.weight"]) + d.matrix()})

# --- Slices of fused weights
H, N = 2, "model.diffusion_model."
QKV, T1 = N + "double_blocks.0.img_attn.qkv", "transformer.transformer_blocks.0.attn.to_"
FLUX = tensors_of({QKV + ".weight": ("BF16", (3 * H, H)), QKV + ".bias": ("F32", (3 * H,)),
                   N + "double_blocks.0.img_attn.proj.weight": ("F32", (H, H)), N + "single_blocks.0.linear1.weight": ("F16", (7 * H, H)),
                   N + "single_blocks.0.linear2.weight": ("F32", (H, 5 * H))})
SPLIT = tensors_of({T1 + f"{x}.weight": ("F32", (H, H)) for x in "qkv"} | {"transformer.norm_out.linear.weight": ("F32", (2 * H, H))})
x = loha(T1 + "k", 2, (2,))
near("r130-hadamard-of-a-third", FLUX, file(x), {QKV + ".weight": x.d.at((6, H), 2)})
x = Method(T1 + "v", "kronecker", w1=(2, 1), w2=(1, 2))
near("r130-kronecker-of-a-third", FLUX, file(x), {QKV + ".weight": x.d.at((6, H), 4)})
x = Method("lora_unet_double_blocks_0_img_attn_qkv", "kronecker", w1=(3, 1), w2=(2, 2))
near("r130-kronecker-flat", FLUX, file(x), {QKV + ".weight": x.d})
near("r130-kronecker-on-parts", SPLIT, file(x), {T1 + f"{w}.weight": x.d[2 * i:2 * i + 2] for i, w in enumerate("qkv")})
x = Method(T1 + "k", "output-scaling", vector=(2,))
near("r130-output-scaling-of-a-third", FLUX, file(x), {QKV + ".weight": x.scaling(FLUX[QKV + ".weight"], 2, 2).at((6, H), 2)})
three = [Method(T1 + w, "output-scaling", vector=(2,)) for w in "qkv"]
near("r130-output-scalings-of-thirds", FLUX, file(*three), {QKV + ".weight": M([
    r for i, x in enumerate(three) for r in x.scaling(FLUX[QKV + ".weight"], 2 * i, 2).rows])})
d = fine("third", "F32", (2, 2))
near("r139-third", FLUX, file(difference(T1 + "k.weight", d)), {QKV + ".weight": d.matrix().at((6, H), 2)})
x = loha(T1 + "k", 2, (2,), input_magnitude=(2,))
bad("r131-input-magnitude-of-a-third", FLUX, file(x))
bad("r130-hadamard-shape", FLUX, file(loha(T1 + "k", 3, (2,))))
