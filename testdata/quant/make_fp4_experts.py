"""Writes modelopt_nvfp4_experts: stacked experts in NVFP4, as ModelOpt exports those of Llama 4 and gpt-oss
(in×out in the model, quantised out×in, stored transposed: _export_quantized_weight of modelopt.torch.export, whose
steps this script takes). The exact values are computed with fractions from the stored bytes, and compared with
those of the library, within its own roundings. compressed-tensors 0.20.1 quantises no stacks in NVFP4.

    python make_fp4_experts.py
"""
import hashlib, json, os
from fractions import Fraction as F
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
E2M1 = [F(x) for x in (0, .5, 1, 1.5, 2, 3, 4, 6)]
LUT = E2M1 + [-x for x in E2M1]


def e4m3(b):
    return F(b, 512) if b < 8 else F(8 + b % 8, 8) * F(2) ** (b // 8 - 7)


def number(x, code):
    return -0.0 if x == 0 and code >= 8 else float(x)


def write(name, tensors, config, exact, library, made_by):
    t = torch.tensor([x for m in exact for row in m for x in row], dtype=torch.float64)
    assert (library.double().reshape(-1) - t).abs().max() <= 2**-8 * t.abs().max()
    truth = {"m.experts.gate_up_proj" if "modelopt" in name else "m.weight": {
        "shape": list(library.shape), "sha256": hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest(),
        "every97": [x.hex() for x in t.tolist()[::97]], "library": {"BF16": hashlib.sha256((library.bfloat16().contiguous() + 0).view(torch.uint8).numpy().tobytes()).hexdigest()}}}
    d = f"{HERE}/{name}"
    os.makedirs(d, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, f"{d}/model.safetensors", metadata={"format": "pt"})
    for file, content in (("config.json", {"torch_dtype": "bfloat16", "quantization_config": config}), ("truth.json", truth), ("META.json", {"made_by": made_by})):
        json.dump(content, open(f"{d}/{file}", "w"), indent=1)


def modelopt():
    import modelopt
    from modelopt.torch.export.quant_utils import maybe_transpose_expert_weight_dimensions as turned, to_quantized_weight
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
    E, I, O = 3, 64, 40
    w = (torch.randn(E, I, O, generator=torch.Generator().manual_seed(7)) * .02).bfloat16()
    t, _ = turned(w)
    s2 = NVFP4QTensor.get_weights_scaling_factor_2(t)
    s = NVFP4QTensor.get_weights_scaling_factor(t, block_size=16, weights_scaling_factor_2=s2)[0]
    codes = to_quantized_weight(t, s, "nvfp4", s2, 16)
    back = NVFP4QTensor(t.shape, torch.bfloat16, codes).dequantize(torch.bfloat16, scale=s, double_scale=s2, block_sizes={-1: 16})
    codes, s = turned(codes, s)
    c, b, g = codes.tolist(), s.contiguous().view(torch.uint8).tolist(), F(s2.item())
    exact = [[[number(LUT[k] * e4m3(b[e][i // 16][o]) * g, k) for o in range(O) for k in [c[e][i // 2][o] >> i % 2 * 4 & 15]] for i in range(I)] for e in range(E)]
    p = "m.experts.gate_up_proj"
    write("modelopt_nvfp4_experts", {p: codes, p + "_weight_scale": s, p + "_weight_scale_2": s2.squeeze(), p + "_input_scale": torch.tensor(.01)},
          {"quant_method": "modelopt", "quant_algo": "NVFP4"}, exact, back.transpose(1, 2).contiguous(), f"nvidia-modelopt {modelopt.__version__}, torch {torch.__version__}, the steps of _export_quantized_weight")


modelopt()
