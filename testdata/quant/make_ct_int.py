"""Integers of compressed-tensors in other shapes and widths, with zero points, and its MXFP6.

The exact values are computed from the codes before they are packed. With compressed-tensors 0.9.4
(an argument "old") it writes what newer releases no longer do: groups in the order of activations,
and words with a gap.
"""
import sys
from common import *
import compressed_tensors as ct
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.quantization.lifecycle.forward import quantize

V = f"compressed-tensors {ct.__version__}, torch {torch.__version__}"


def config(scheme, fmt):
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": fmt, "config_groups": {"group_0": json.loads(scheme.model_dump_json())}}}


def qparams(w, a):
    if a.strategy == "tensor": mn, mx = w.min().reshape(1), w.max().reshape(1)
    elif a.strategy == "channel": mn, mx = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    else:
        g = w.reshape(*w.shape[:-1], -1, a.group_size); mn, mx = g.amin(-1), g.amax(-1)
    return calculate_qparams(mn, mx, a)


def exact(q, s, z, a):
    wide = lambda t: t.double().repeat_interleave(a.group_size, -1) if a.strategy == "group" else t.double()
    return (q.double() - wide(z)) * wide(s)


def new(name, fmt, w, symmetric, bits, strategy, group=None, dtype=torch.bfloat16, act=None):
    from compressed_tensors.compressors.base import BaseCompressor
    k = dict(num_bits=bits, type="int", strategy=strategy, symmetric=symmetric)
    if group: k["group_size"] = group
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**k), **(act or {}))
    a, w = scheme.weights, (w + .004).to(dtype)
    s, z = qparams(w, a)
    C = BaseCompressor.get_value_from_registry(fmt)
    c = C.compress({"weight": w, "weight_scale": s, "weight_zero_point": z}, scheme)
    d = C.decompress(dict(c), scheme)["weight"]
    q = quantize(x=w, scale=s, zero_point=z, args=a, dtype=torch.int8)
    ex = exact(q, s, z, a)
    assert cmp(name, d, ex) == 0
    dump(name, {"m." + k: v for k, v in c.items()}, config(scheme, fmt), {"exact_f64": ex, "ref": d}, {"made_by": V})


def old(name, bits, group, order):
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor, unpack_from_int32
    a = QuantizationArgs(num_bits=bits, type="int", strategy="group", group_size=group, symmetric=True, actorder="group" if order else None)
    w = W(24, 96, bits).to(torch.float16)
    s, z = qparams(w, a)
    idx = None
    if order:
        idx = torch.randperm(96, generator=torch.Generator().manual_seed(5)).argsort() // group
        idx = idx.to(torch.int32)
    c = PackedQuantizationCompressor(None)
    p = c.compress_weight(w, s, a, zero_point=z, g_idx=idx)
    q = unpack_from_int32(p["weight_packed"], bits, w.shape)
    p = dict(p, weight_scale=s)
    if order: p["weight_g_idx"] = idx
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    d = dequantize(x_q=q, scale=s, g_idx=idx, args=a)
    ex = q.double() * (s.double()[:, idx.long()] if order else s.double().repeat_interleave(group, 1))
    assert cmp(name, d, ex) == 0
    scheme = QuantizationScheme(targets=["Linear"], weights=a)
    dump(name, {"m." + k: v for k, v in p.items()}, config(scheme, "pack-quantized"), {"exact_f64": ex, "ref": d}, {"made_by": V})


if sys.argv[1:] == ["old"]:
    old("ct_w4_actorder_g16", 4, 16, True)
    old("ct_w3_gaps_g32", 3, 32, False)
    sys.exit()
P = "pack-quantized"
new("ct_w4_asym_channel_37x45", P, W(37, 45, 1), False, 4, "channel")
new("ct_w5_asym_g16_40x64", P, W(40, 64, 2), False, 5, "group", 16, torch.float32)
new("ct_w3_asym_g32_70x96", P, W(70, 96, 3), False, 3, "group", 32)
new("ct_w8_asym_g32_10x64", P, W(10, 64, 4), False, 8, "group", 32, torch.float16)
new("ct_w2_sym_tensor_9x50", P, W(9, 50, 5), True, 2, "tensor")
new("ct_w4_asym_experts_3x20x64", P, torch.stack([W(20, 64, 6 + e) for e in range(3)]), False, 4, "group", 32)
i8 = {"input_activations": QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True)}
new("ct_w8a8_channel", "int-quantized", W(24, 40, 9), True, 8, "channel", act=i8)
new("ct_w8a8_asym_channel", "int-quantized", W(24, 40, 10), False, 8, "channel", act=i8)
new("ct_w8a8_tensor", "int-quantized", W(24, 40, 11), True, 8, "tensor", act=i8)
from compressed_tensors.compressors.base import BaseCompressor
C = BaseCompressor.get_value_from_registry("mxfp6-pack-quantized")
scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=6, type="float", strategy="group", group_size=32, symmetric=True, scale_dtype="torch.uint8"))
w = W(24, 96, 12).to(torch.bfloat16)
s, z = qparams(w, scheme.weights)
c = C.compress({"weight": w, "weight_scale": s, "weight_zero_point": z}, scheme)
d = C.decompress(dict(c), scheme)["weight"]
q = quantize(x=w, scale=s, zero_point=None, args=scheme.weights)
ex = q.double() * torch.pow(torch.tensor(2., dtype=torch.float64), c["weight_scale"].double() - 127).repeat_interleave(32, 1)
assert cmp("mxfp6", d, ex) == 0
dump("ct_mxfp6", {"m." + k: v for k, v in c.items()}, config(scheme, "mxfp6-pack-quantized"), {"exact_f64": ex, "ref": d}, {"made_by": V})
