"""The same values as exact fractions, by the formulas and from nothing but the file's tensors."""

from fractions import Fraction
from math import isqrt

import numpy as np
import torch


def fractions(t: torch.Tensor) -> np.ndarray:
    values = [Fraction(v) for v in t.double().reshape(-1).tolist()]
    return np.array(values, dtype=object).reshape(t.shape)


def merge(base: dict, files, weights, unflatten) -> dict:
    """W' and b' of every module of the files, where unflatten gives a module's name in the base."""
    result, modules = {}, {}
    for state, weight in zip(files, weights):
        for key, t in state.items():
            module, _, part = key.partition(".")
            name = unflatten(module)
            modules.setdefault(name, []).append((part, t, state, Fraction(weight)))
    for name, parts in modules.items():
        for suffix in ("weight", "bias"):
            if f"{name}.{suffix}" in base:
                value = apply(fractions(base[f"{name}.{suffix}"]), suffix, parts)
                if value is not None:
                    result[f"{name}.{suffix}"] = value
    return result


def apply(w, suffix: str, parts):
    """The base's tensor with the changes of all files, or None where they have none for it."""
    files = {}
    for part, t, state, weight in parts:
        files.setdefault(id(state), ({}, weight))[0][part] = t
    total, scale = np.zeros_like(w), None
    changed = False
    for tensors, weight in files.values():
        factors = {part: fractions(t) for part, t in tensors.items()}
        delta = difference(w, suffix, factors)
        if delta is not None:
            total, changed = total + weight * delta.reshape(w.shape), True
            scale = factors.get("dora_scale")
    if not changed:
        return None
    return w + total if scale is None else dora(w + total, scale)


def difference(w, suffix: str, t: dict):
    """The change of one tensor of a module, before the user's weight."""
    if suffix == "bias":
        return t.get("diff_b", t.get("b_norm"))
    if "diff" in t or "w_norm" in t:
        return t.get("diff", t.get("w_norm"))
    if "on_input" in t:
        axis = 1 if t["on_input"].item() == 1 else 0
        shape = [-1 if i == axis else 1 for i in range(w.ndim)]
        return w * t["weight"].reshape(shape)
    for keys, form in (("lora_down.weight", locon), ("hada_w1_b", loha), ("lokr", lokr)):
        if any(key.startswith(keys) for key in t):
            delta, rank = form(w, t)
            alpha = t["alpha"].item() if rank else 0
            return delta * (alpha / rank if alpha else 1)
    raise ValueError(sorted(t))


def locon(w, t: dict):
    up, down = t["lora_up.weight"], t["lora_down.weight"]
    rank = len(down)
    if "lora_mid.weight" not in t:
        return flat(up) @ flat(down), rank
    return tucker(t["lora_mid.weight"], flat(up).T, flat(down)), rank


def loha(w, t: dict):
    rank = len(t["hada_w1_b"])
    if "hada_t1" not in t:
        factors = [t[f"hada_w{i}_a"] @ t[f"hada_w{i}_b"] for i in (1, 2)]
    else:
        factors = [tucker(t[f"hada_t{i}"], t[f"hada_w{i}_a"], t[f"hada_w{i}_b"]) for i in (1, 2)]
    return factors[0] * factors[1], rank


def lokr(w, t: dict):
    kernel = np.prod(w.shape[2:], dtype=int)
    rank = 0
    if "lokr_w1" in t:
        w1 = t["lokr_w1"]
    else:
        w1, rank = t["lokr_w1_a"] @ t["lokr_w1_b"], len(t["lokr_w1_b"])
    if "lokr_w2" in t:
        w2 = t["lokr_w2"]
    elif "lokr_t2" in t:
        w2, rank = tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"]), len(t["lokr_w2_b"])
    else:
        w2, rank = t["lokr_w2_a"] @ t["lokr_w2_b"], len(t["lokr_w2_b"])
    (o1, i1), o2 = w1.shape, len(w2)
    w2 = w2.reshape(o2, -1, kernel)
    i2 = w2.shape[1]
    delta = np.empty((o1 * o2, i1 * i2, kernel), dtype=object)
    for a in range(o1):
        for c in range(i1):
            delta[a * o2 : (a + 1) * o2, c * i2 : (c + 1) * i2] = w1[a, c] * w2
    return delta, rank


def tucker(core, a, b):
    """The sum over p and q of a[p, i] · core[p, q, k] · b[q, j], at (i, j, k)."""
    p, q, *kernel = core.shape
    left = a.T @ core.reshape(p, -1)
    left = left.reshape(a.shape[1], q, -1)
    return np.stack([left[:, :, k] @ b for k in range(left.shape[2])], axis=2)


def dora(v, magnitude):
    """v · m / norm, where the norm runs over all axes in which the magnitude has one element."""
    axis = 0 if magnitude.shape[0] == v.shape[0] else 1
    squares = v**2
    rows = np.moveaxis(squares, axis, 0).reshape(v.shape[axis], -1)
    factors = [m / root(sum(row)) for m, row in zip(magnitude.reshape(-1), rows)]
    shape = [-1 if i == axis else 1 for i in range(v.ndim)]
    return v * np.array(factors, dtype=object).reshape(shape)


def root(x: Fraction) -> Fraction:
    """The square root, to a part of 2**-200."""
    shift = 512
    return Fraction(isqrt((x.numerator << 2 * shift) // x.denominator), 1 << shift)


def flat(t):
    return t.reshape(len(t), -1)


PRECISION = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126)}


def round_to(x: Fraction, dtype) -> Fraction:
    """The nearest value of the dtype, ties to even."""
    if x == 0:
        return x
    bits, smallest = PRECISION[dtype]
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, smallest) - bits + 1)
    return round(x / quantum) * quantum
