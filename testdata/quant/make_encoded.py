"""Writes encoded/: weights, and the codes and scales that the libraries give them.

Usage: make_encoded.py OUT. transformers 5.24.0, torchao 0.18.0, bitsandbytes 0.50.2 on a CPU, compressed-tensors
0.20.1, torch 2.15.0. compressed-tensors computes in the dtype of the weights, and gets all in F32.
"""
import sys, types, torch
from safetensors.torch import save_file
import bitsandbytes.functional as bnb
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Quantize
from torchao.prototype.mx_formats.mx_tensor import to_mx
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
import compressed_tensors.compressors
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.quantization.utils.helpers import generate_gparam

g = torch.Generator().manual_seed(21)
def halves(p, low_first):
    p = p.reshape(-1); low, high = p & 15, p >> 4
    return torch.stack([low, high] if low_first else [high, low], -1).flatten()

def fp8(x):
    config = FineGrainedFP8Config(weight_block_size=[128, 128]); config.scale_fmt = None
    q = Fp8Quantize(types.SimpleNamespace(quantization_config=config))._quantize_one("w.weight", x)
    return q["w.weight"].view(torch.uint8), q["w.weight_scale_inv"]

def mxfp4(x):
    scale, codes = to_mx(x, torch.float4_e2m1fn_x2, 32)
    return halves(codes.view(torch.uint8), True).reshape(x.shape), scale.to(torch.float32)

def nf4(x):
    codes, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=False)
    return halves(codes, False)[: x.numel()].reshape(x.shape), state.absmax

def compress(x, format, group, **args):
    x = x.float()
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=4, symmetric=True, group_size=group, **args))
    blocks = x.reshape(x.shape[0], -1, group)
    whole = generate_gparam(x.min(), x.max()) if args["type"] == "float" else None
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights, global_scale=whole)
    state = {"weight": x, "weight_scale": scale, "weight_zero_point": zero}
    if whole is not None:
        state["weight_global_scale"] = whole
    return BaseCompressor.get_value_from_registry(format).compress(state, scheme)

def nvfp4(x):
    c = compress(x, "nvfp4-pack-quantized", 16, type="float", strategy="tensor_group", scale_dtype=torch.float8_e4m3fn)
    return halves(c["weight_packed"], True).reshape(x.shape), c["weight_scale"].float() / c["weight_global_scale"]

def int4(x):
    c = compress(x, "pack-quantized", 128, type="int", strategy="group")
    return (unpack_from_int32(c["weight_packed"], 4, x.shape) + 8).to(torch.uint8), c["weight_scale"]

# A small block with ties (multiples of 1/4 and of 2⁻¹⁰), a block of zeros, one of tiny and one of large values.
main = torch.randn(128, 256, generator=g).mul(.02).to(torch.bfloat16)
main[0, :128] = torch.arange(128).sub(64).div(8).to(torch.bfloat16)
main[1, :64] = torch.arange(64).sub(32).div(4).to(torch.bfloat16)
main[2, :64] = 0
main[3, :64] *= 2.0 ** -125
main[4, 128:192] *= 2.0 ** 60
zeros = torch.zeros(128, 128); zeros[0, 0] = -0.0
float32 = torch.randn(128, 128, generator=g).mul(.02)
straddling = torch.randn(40, 72, generator=g).mul(.02).to(torch.bfloat16)
short = torch.randn(5, 13, generator=g).mul(.02)
table = bnb.get_4bit_type("nf4", device="cpu")
ties = (table[:-1] + table[1:]) / 2
ties = torch.cat([ties, torch.ones(1), -ties, ties, torch.zeros(18)]).reshape(1, 64)
weights = {"main": main, "zeros": zeros, "float32": float32, "straddling": straddling, "short": short, "ties": ties}
out = {}
for name, x in weights.items():
    out[name] = x
    for kind, encode, width in (("fp8", fp8, 128), ("mxfp4", mxfp4, 32), ("nf4", nf4, 1), ("nvfp4", nvfp4, 16), ("int4", int4, 128)):
        if kind == "fp8" and x.shape[0] % 128 or x.shape[1] % width:
            continue
        codes, scales = encode(x)
        out[f"{name}.{kind}.codes"], out[f"{name}.{kind}.scales"] = codes.contiguous(), scales.float().contiguous()
save_file(out, sys.argv[1])
