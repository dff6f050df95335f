"""Weights of torchao in its safetensors form, and of Quanto."""
from common import *
import torchao, optimum.quanto as qu
from safetensors.torch import save_file
from torchao.quantization import quantize_, Int8WeightOnlyConfig, Float8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, PerTensor, MappingType
import torchao.prototype.safetensors.safetensors_support as ss

VA = f"torchao {torchao.__version__}, torch {torch.__version__}"
VQ = f"optimum-quanto {__import__('importlib.metadata').metadata.version('optimum-quanto')}, torch {torch.__version__}"


def linear(rows, cols, seed, dtype=torch.bfloat16):
    l = torch.nn.Linear(cols, rows, bias=False).to(dtype)
    l.weight = torch.nn.Parameter((W(rows, cols, seed) + .003).to(dtype), requires_grad=False)
    return torch.nn.Sequential(l)


def values(q): return q.double() if q.dtype == torch.int8 else e4m3_f64(q)
def spread(t, like): return t.double().repeat_interleave(like.shape[0] // t.shape[0], 0).repeat_interleave(like.shape[1] // t.shape[1], 1)


def ao(name, config, rows=24, cols=64):
    m = linear(rows, cols, 71)
    quantize_(m, config)
    w = m[0].weight
    flat, meta = ss.flatten_tensor_state_dict({"m.weight": w})
    q, s = flat["m._weight_qdata"], flat["m._weight_scale"]
    z = flat.get("m._weight_zero_point")
    ex = (values(q) - (spread(z, q) if z is not None else 0)) * spread(s, q)
    cmp(name, w.dequantize(), ex)
    d = f"{OUT}/{name}"
    dump(name, flat, {"quantization_config": {"quant_method": "torchao"}}, {"exact_f64": ex, "ref": w.dequantize()}, {"made_by": VA})
    save_file({k: v.contiguous() for k, v in flat.items()}, f"{d}/model.safetensors", metadata=dict(meta, format="pt"))


ao("torchao_int8", Int8WeightOnlyConfig())
ao("torchao_int8_group", Int8WeightOnlyConfig(granularity=PerGroup(16)))
ao("torchao_intx4_asym", IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32), mapping_type=MappingType.ASYMMETRIC))
ao("torchao_float8", Float8WeightOnlyConfig())


def quanto(name, dtype, model_dtype):
    m = linear(24, 64, 72, model_dtype)
    qu.quantize(m, weights=dtype)
    qu.freeze(m)
    state = {k.replace("0.", "m.", 1): v for k, v in m.state_dict().items()}
    q, s = state["m.weight._data"], state["m.weight._scale"]
    ex = values(q) * s.double()
    ref = m[0].weight.dequantize()
    cmp(name, ref, ex)
    dump(name, state, {"quantization_config": {"quant_method": "quanto"}}, {"exact_f64": ex, "ref": ref}, {"made_by": VQ})


quanto("quanto_int8", qu.qint8, torch.float16)
quanto("quanto_float8", qu.qfloat8, torch.bfloat16)
m = linear(64, 128, 73)
qu.quantize(m, weights=qu.qint4); qu.freeze(m)
dump("quanto_int4", {k.replace("0.", "m.", 1): v for k, v in m.state_dict().items()}, {"quantization_config": {"quant_method": "quanto"}}, {"none": torch.zeros(1)}, {"made_by": VQ})
