"""Adapters, bases and the list of cases. The .lora files are written by the builder of ../."""
import hashlib
import json
import math
import os
import struct
import sys
from fractions import Fraction

from exact import WIDTHS, M, T, added, noise

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import builder  # noqa: E402

CASES = []


class Layer:
    """A and B are shapes or tensors. d is s·B·A, where both have two dimensions."""

    def __init__(self, module, A, B, kind="linear", r=None, alpha=None, salt="", dtype="F32",
                 scaling="alpha/r", scale=None, stored_alpha=None, **roles):
        self.module, self.kind, self.roles = module, kind, {}
        roles |= {} if stored_alpha is None else {"alpha": stored_alpha}
        for role, v in {"A": A, "B": B, **roles}.items():
            self.roles[role] = v if isinstance(v, T) else noise(module + role + salt, dtype, v)
        a, b = self.roles["A"], self.roles["B"]
        self.r = r or a.shape[0]
        alpha = 2 * self.r if alpha is None else alpha
        by = math.sqrt(self.r) if scaling == "alpha/sqrt(r)" else self.r
        self.s = Fraction(scale if scaling == "fixed" else alpha / by)
        self.record = {"kind": kind, "module": module, "rank": self.r, "scaling": scaling}
        self.record |= {"scale": real(scale)} if scaling == "fixed" else {"alpha": real(alpha)}
        self.A, self.B = a.matrix(), b.matrix()
        self.d = self.s * (self.B @ self.A) if self.A and self.B and self.fits() else None

    def fits(self):
        return self.B.rows and len(self.B.rows[0]) == len(self.A.rows)

    def expert(self, e, E, slowest=False):
        """A and B of an expert of a stack: section 8.1."""
        columns = [e * self.r + k if slowest else k * E + e for k in range(self.r)]
        return self.A[e * self.r:(e + 1) * self.r], M([self.B.t.rows[k] for k in columns]).t

    def experts(self, E, slowest=False):
        return [self.s * (b @ a) for a, b in (self.expert(e, E, slowest) for e in range(E))]


def lin(module, m, n, r=1, **more):
    return Layer(module, (r, n), (m, r), **more)


def real(x):
    if x == int(x) and abs(x) < 2**53:
        return int(x)
    return struct.pack(">d", x).hex()


def replace(target, t):
    return {"action": "replace", "target": target}, t


def rows(target, where, t):
    return {"action": "rows", "target": target, "rows": list(where)}, t


def opaque(name):
    return {"action": "opaque"}, noise(name, "F32", (2,)), name


def adapter(*parts, requires=(), **more):
    """The bytes of a file of one adapter: layers, and records beside them. requires are pairs of a
    feature and its where. Keywords replace members of the adapter; `minor` that of the file."""
    layers = sorted((p for p in parts if isinstance(p, Layer)), key=lambda x: x.module.encode())
    tensors, beside, names = [], [], set()

    def index(name, t):
        while name in names:
            name += "'"
        names.add(name)
        tensors.append(builder.tensor(name, t.dtype, t.shape, t.data()))
        return len(tensors) - 1

    records = [x.record | {"roles": {role: index(f"{x.module}.{role}", t)
                                     for role, t in x.roles.items()}} for x in layers]
    for p in parts:
        if not isinstance(p, Layer):
            name = p[2] if len(p) > 2 else p[0]["target"]
            beside.append(p[0] | {"tensor": index(name, p[1])})
    minor = more.pop("minor", any(x.kind.startswith("expert-") for x in layers))
    base = {"fingerprints": more.pop("fingerprints", {}), "name": "", "revision": ""}
    a = builder.adapter(layers=records, beside=beside, base=base, requires=[
        {"feature": f, "where": w} for f, w in sorted(requires)], **more)
    return builder.lora(builder.model([a], tensors), minor=minor)


def tensors_of(base):
    """A base from names to tensors, or to dtype and shape; or from a text of names, 2×3 in F32."""
    if isinstance(base, str):
        base = {f"{m}.weight": ("F32", (2, 3)) for m in base.split()}
    return {n: t if isinstance(t, T) else noise(n, *t) for n, t in base.items()}


def safetensors(tensors):
    header, at = {}, 0
    for name, t in tensors.items():
        end = at + len(t.bits) * WIDTHS[t.dtype]
        header[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(t.data() for t in tensors.values())


def fingerprint(t):
    line = f"{t.dtype} {','.join(map(str, t.shape))}\n".encode()
    return hashlib.sha256(line + t.data()).hexdigest()


def case(name, rules, base, adapters, want=None, config=None, answers="", any_nan=False,
         without=(), comment="", near=False):
    """want has, for each tensor that differs from the base, a tensor or the sum Σ for it.
    answers are words, or word=value. Each adapter is bytes, or a pair of bytes and a weight."""
    base = tensors_of(base)
    if not isinstance(adapters, list):
        adapters = [adapters]
    adapters = [a if isinstance(a, tuple) else (a, 1) for a in adapters]
    want = {n: x if isinstance(x, T) else added(base[n], x) for n, x in (want or {}).items()}
    want = {n: x for n, x in want.items() if base.get(n) != x}
    CASES.append((name, rules, base, config, adapters, answers.split(), want, without, any_nan,
                  comment, near))


def ok(name, base, adapters, want, **more):
    case("ok-" + name, [], base, adapters, want, **more)


def bad(name, base, adapters, *also, **more):
    """A case that breaks the rule that its name begins with; a program may report `also`."""
    rule = name.split("-")[0].upper()
    case(name, [rule, *also], base, adapters, **more)
