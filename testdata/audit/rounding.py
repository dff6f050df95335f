"""The ways to round a merge, and how many elements of a merge each of them gets wrong.

    exact            W + Σ s·B·A, rounded once
    float32          s·(B·A) and the sum in float32, rounded once
    delta_rounded    s·(B·A) in float32, rounded; the sum, rounded
    factors_float32  float32, with factors that are rounded first
    factors_rounded  delta_rounded, with factors that are rounded first
    product_rounded  factors, B·A, s·(B·A) and the sum, each rounded
    scaled_b         factors, s·B, its product with A, and the sum, each rounded

A suffix names a detour: ":f16" merges in F16; where the merge has another dtype than the base, ":before"
casts the base first, ":after" the result last, and ":direct" rounds the sum to the dtype of the merge.
":joined" is for adapters that became one adapter before the merge.
"""

import numpy as np
import torch

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DIGITS = {BF16: (8, -133), F16: (11, -24), F32: (24, -149)}  # of the significand; the smallest power


def nearest(x: torch.Tensor, dtype) -> torch.Tensor:
    """x in float64, rounded once to nearest even. torch rounds float64 to 16 bits by way of float32."""
    digits, least = DIGITS[dtype]
    x = x.numpy()
    q = np.maximum(np.frexp(x)[1] - digits, least)
    return torch.from_numpy(np.ldexp(np.rint(np.ldexp(x, -q)), q)).to(dtype)


def cast(x, dtype):
    """The values of x rounded to a dtype, in float32."""
    return x.to(dtype).float()


# What each way adds to W, as functions of s, B, A and the dtype of the merge, in float32.
UPDATES = {
    "float32": lambda s, b, a, d: (b.float() @ a.float()) * s,
    "delta_rounded": lambda s, b, a, d: cast((b.float() @ a.float()) * s, d),
    "factors_float32": lambda s, b, a, d: (cast(b, d) @ cast(a, d)) * s,
    "factors_rounded": lambda s, b, a, d: cast((cast(b, d) @ cast(a, d)) * s, d),
    "product_rounded": lambda s, b, a, d: cast(cast(cast(b, d) @ cast(a, d), d) * s, d),
    "scaled_b": lambda s, b, a, d: cast(cast(cast(b, d) * s, d) @ cast(a, d), d),
}


def candidates(w, layers, out) -> dict[str, torch.Tensor]:
    """What W + Σ s·B·A becomes in each way. layers holds (s, B, A) in order; out is the dtype of the merge."""
    base = w.dtype
    total = sum((s * (b.double() @ a.double()) for s, b, a in layers), torch.zeros(w.shape, dtype=torch.float64))
    if base == out:
        detours = {"": (base, base)}
        ways = {"exact": nearest(w.double() + total, out)}
    else:
        detours = {":before": (out, out), ":after": (base, out)}
        single = w.float() + sum((UPDATES["float32"](*layer, None) for layer in layers), torch.zeros(w.shape))
        ways = {"exact:direct": nearest(w.double() + total, out), "float32:direct": single.to(out)}
    if base == BF16 and out == BF16:
        detours[":f16"] = F16, out
    for detour, (work, to) in detours.items():
        if detour:
            ways["exact" + detour] = nearest(w.to(work).double() + total, work).to(to)
        for name, update in UPDATES.items():
            x = w.to(work)
            for layer in layers:
                x = (x.float() + update(*layer, work)).to(work)
            ways[name + detour] = x.to(to)
    return ways


def differing(got: torch.Tensor, want: torch.Tensor) -> int:
    """The number of elements that differ; zeros of either sign are equal."""
    return int((got.double() != want.double()).sum())
