"""Keeps of the fixtures under $OUT, made by make_*.py, what the tests need: model, configuration, and in
truth.json the SHA-256 of the exact values in float64 and of the library's own outputs, with every 97th
value as text. Of the schemes that are only refused, headers.json keeps names, dtypes and shapes.

    OUT=/some/directory python make_fp8.py    # and make_bnb.py, make_ct.py, make_ct_int.py, make_fp4.py, make_ao.py
    OUT=/some/directory python shrink.py
"""
import hashlib, json, os, shutil, struct, sys
import numpy as np, torch
from safetensors.torch import load_file

OUT, HERE = os.environ["OUT"], os.path.dirname(os.path.abspath(__file__))
KEEP = ["fp8_block_128", "fp8_block_ragged_576x256", "fp8_block_ragged_192x256", "fp8_block_ragged_320x200", "fp8_block_ue8m0",
        "ct_fp8_block", "ct_fp8_channel", "ct_fp8_tensor", "ct_mxfp8", "gptoss_mxfp4", "bnb_int8",
        "bnb_nf4_dq_bfloat16_96x128", "bnb_nf4_dq_bfloat16_40x72", "bnb_nf4_plain_float16_96x128", "bnb_fp4_dq_float32_96x128",
        "ct_nvfp4", "modelopt_nvfp4", "ct_mxfp4", "ct_mxfp6", "ct_w4_sym_g128", "ct_w4_asym_g32", "ct_w3_sym_g128", "ct_w8_sym_g128",
        "ct_w4_asym_channel_37x45", "ct_w5_asym_g16_40x64", "ct_w3_asym_g32_70x96", "ct_w8_asym_g32_10x64", "ct_w2_sym_tensor_9x50",
        "ct_w4_asym_experts_3x20x64", "ct_w4_actorder_g16", "ct_w3_gaps_g32", "ct_w8a8_channel", "ct_w8a8_asym_channel", "ct_w8a8_tensor",
        "torchao_int8", "torchao_int8_group", "torchao_intx4_asym", "torchao_float8", "quanto_int8", "quanto_float8",
        "gptq_v1_seq", "gptq_v2_desc", "awq_gemm", "hqq_4b_g64_axis1", "mlx_affine_4b_g64_bfloat16", "mlx_affine_8b_g64_float32", "mlx_mxfp4"]
TWICE = ("hqq_", "mlx_affine_")  # their libraries round twice
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def header(path):
    with open(path, "rb") as f:
        h = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    h.pop("__metadata__", None)
    return h


def digest(t):
    raw = t.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


def truth(exact, refs):
    assert exact.dtype == torch.float64
    flat = exact.reshape(-1).tolist()
    return {"shape": list(exact.shape), "sha256": digest(exact), "every97": [x.hex() for x in flat[::97]],
            "library": {NAMES[r.dtype]: digest(r + 0) for r in refs}}  # without signs of zeros


for name in KEEP:
    src, dst = f"{OUT}/{name}", f"{HERE}/{name}"
    if not os.path.isdir(src):
        continue  # made in another run
    os.makedirs(dst, exist_ok=True)
    for f in ("model.safetensors", "config.json", "META.json"):
        shutil.copy(f"{src}/{f}", f"{dst}/{f}")
    t = load_file(f"{src}/truth.safetensors")
    q = load_file(f"{src}/model.safetensors")
    if name == "gptoss_mxfp4":
        p = "model.layers.0.mlp.experts."
        all = {p + "gate_up_proj": truth(t["gate_up_exact_f64"], [t["gate_up_ref_bf16"]]),
               p + "down_proj": truth(t["down_exact_f64"], [t["down_ref_bf16"]])}
    elif name == "bnb_int8":  # the library multiplies with float32(1/127)
        exact = q["m.weight"].double() * q["m.SCB"].double().view(-1, 1) * float(np.float32(7.874015718698502e-3))
        all = {"m.weight": truth(exact, [t["ref_f32"]])}
    else:
        weight, = [k for k in q if k.endswith(".weight")] or ["m.weight"]
        refs = [t[k] for k in t if k.startswith("ref") and not name.startswith(TWICE) and (name, k) != ("modelopt_nvfp4", "ref_f32")]  # rounded twice
        all = {weight: truth(t["exact_f64"], refs)}
    json.dump(all, open(f"{dst}/truth.json", "w"), indent=1)

others = {}
for name in sorted(sys.argv[1:]):
    h = header(f"{OUT}/{name}/model.safetensors")
    config = json.load(open(f"{OUT}/{name}/config.json"))
    others[name] = {"made_by": json.load(open(f"{OUT}/{name}/META.json"))["made_by"], "config": config.get("quantization_config"),
                    "tensors": {k: [v["dtype"], v["shape"]] for k, v in h.items()}}
if others:
    json.dump(others, open(f"{HERE}/headers.json", "w"), indent=1)
