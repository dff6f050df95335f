"""Writes a base, a fine-tune of it in another layout, and the errors that numpy and kohya reach.

base.safetensors has the names of diffusers, tuned.safetensors those of LDM. truth.json has, for each
module of the base, the singular values of tuned - base as the matrix m x (n * kernel), by numpy in
float64, and the error of the factors that kohya's extract_lora_from_models makes at RANK and
CONV_RANK: svd in float32, B = U * S, A = V, without its clamp ("svd") and with it ("clamped").
"""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
RANK, CONV_RANK, QUANTILE = 4, 3, 0.99

# module of diffusers, module of LDM, shape
MODULES = [
    ("unet.conv_in", "input_blocks.0.0", (12, 4, 3, 3)),
    ("unet.down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2", (12, 12, 3, 3)),
    ("unet.down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op", (12, 12, 3, 3)),
    ("unet.down_blocks.0.attentions.0.proj_in", "input_blocks.1.1.proj_in", (12, 12, 1, 1)),
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
     "input_blocks.1.1.transformer_blocks.0.attn1.to_q", (12, 12)),
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
     "input_blocks.1.1.transformer_blocks.0.attn2.to_k", (12, 20)),
]


def kohya(delta, rank, clamp):
    """The error of B·A as the script stores it."""
    u, s, vh = np.linalg.svd(delta.astype(np.float32))
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    b, a = u @ np.diag(s), vh
    if clamp:
        hi = np.quantile(np.concatenate([b.flatten(), a.flatten()]), QUANTILE)
        b, a = b.clip(-hi, hi), a.clip(-hi, hi)
    left = delta - b.astype(np.float64) @ a.astype(np.float64)
    return np.linalg.norm(left) / np.linalg.norm(delta)


def main():
    rng = np.random.default_rng(17)
    base, tuned, truth = {}, {}, {}
    for module, native, shape in MODULES:
        m, n = shape[0], int(np.prod(shape[1:]))
        w = rng.normal(0, 0.1, (m, n)).astype(np.float32)
        k = min(m, n)
        delta = rng.normal(size=(m, k)) * 2.0 ** -np.arange(k) @ rng.normal(size=(k, n)) * 0.01
        t = (w + delta).astype(np.float32)
        base[module + ".weight"] = w.reshape(shape)
        tuned[f"model.diffusion_model.{native}.weight"] = t.reshape(shape)
        d = t.astype(np.float64) - w.astype(np.float64)
        rank = CONV_RANK if len(shape) > 2 and max(shape[2:]) > 1 else RANK
        truth[module] = {
            "rank": rank,
            "sigma": np.linalg.svd(d, compute_uv=False).tolist(),
            "svd": kohya(d, rank, False),
            "clamped": kohya(d, rank, True),
        }
    save_file(base, HERE / "base.safetensors")
    save_file(tuned, HERE / "tuned.safetensors")
    (HERE / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
