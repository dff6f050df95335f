"""Makes checkpoints of several small weights in other shapes and options: mlx_mixed, hqq_mixed and
gptq_mixed. The exact values are computed with fractions from codes that this script unpacks, and compared
with those of the libraries, within their own roundings.

    python make_mixed.py mlx hqq gptq     # each needs its library
"""
import hashlib, json, os, sys
from fractions import Fraction as F
import numpy as np, torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))


def weight(rows, cols, seed, std=0.02):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * std


def numbers(t):
    return [F(x) for x in t.double().reshape(-1).tolist()]


def truth(values, shape, library=None):
    t = torch.tensor([float(v) for v in values], dtype=torch.float64)
    if library is not None:  # two roundings to the dtype of the library
        error = (library.double().reshape(-1) - t).abs().max().item()
        assert error <= 2 * t.abs().max().item() * {torch.float16: 2**-9, torch.bfloat16: 2**-6, torch.float32: 2**-21}[library.dtype], error
    return {"shape": list(shape), "sha256": hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest(),
            "every97": [x.hex() for x in t.tolist()[::97]], "library": {}}


def write(name, tensors, config, truths, made_by):
    d = f"{HERE}/{name}"
    os.makedirs(d, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, f"{d}/model.safetensors", metadata={"format": "pt"})
    for file, content in (("config.json", config), ("truth.json", truths), ("META.json", {"made_by": made_by})):
        json.dump(content, open(f"{d}/{file}", "w"), indent=1)


def mlx():
    import importlib.metadata as im
    import mlx.core as mx

    def t(a):
        if a.dtype == mx.bfloat16:
            return torch.from_numpy(np.array(a.view(mx.uint16)).view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.array(a))

    tensors, truths, quantization = {}, {}, {"group_size": 64, "bits": 4, "mode": "affine"}
    cases = [("model.layers.0.self_attn.o_proj", 6, 192, 4, 64, mx.float16), ("model.layers.1.self_attn.o_proj", 5, 96, 3, 32, mx.bfloat16),
             ("model.layers.2.self_attn.o_proj", 3, 256, 2, 128, mx.float32), ("model.layers.3.self_attn.o_proj", 4, 64, 5, 32, mx.float16),
             ("model.layers.4.self_attn.o_proj", 7, 128, 6, 64, mx.bfloat16), ("model.layers.5.self_attn.o_proj", 2, 96, 8, 32, mx.float16),
             ("model.layers.6.self_attn.o_proj", 4, 64, 1, 64, mx.float16), ("model.embed_tokens", 33, 64, 6, 32, mx.bfloat16)]
    for seed, (module, rows, cols, bits, size, d) in enumerate(cases):
        wq, s, b = mx.quantize(mx.array(weight(rows, cols, seed).numpy()).astype(d), group_size=size, bits=bits)
        ref = mx.dequantize(wq, s, b, group_size=size, bits=bits)
        stream = np.unpackbits(np.array(wq).view(np.uint8).reshape(-1), bitorder="little").reshape(-1, bits)
        codes = (stream.astype(np.int64) << np.arange(bits)).sum(1)
        S, B = numbers(t(s)), numbers(t(b))
        exact = [int(q) * S[i // size] + B[i // size] for i, q in enumerate(codes)]
        tensors |= {f"{module}.weight": t(wq), f"{module}.scales": t(s), f"{module}.biases": t(b)}
        truths[f"{module}.weight"] = truth(exact, (rows, cols), t(ref))
        if (bits, size) != (4, 64):
            quantization[module] = {"group_size": size, "bits": bits}
    lut = [0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6]
    e4m3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().tolist()
    for seed, (mode, size, bits) in enumerate((("nvfp4", 16, 4), ("mxfp8", 32, 8), ("mxfp4", 32, 4))):
        module, rows, cols = f"model.layers.{seed}.mlp.down_proj", 5, 96
        wq, s = mx.quantize(mx.array(weight(rows, cols, 20 + seed).numpy()).astype(mx.bfloat16), mode=mode)
        ref = mx.dequantize(wq, s, mode=mode)
        raw = np.array(wq).view(np.uint8).reshape(-1)
        values = [e4m3[q] for q in raw] if bits == 8 else [lut[n] for q in raw for n in (q & 15, q >> 4)]
        scales = [F(e4m3[x]) if mode == "nvfp4" else F(2) ** (int(x) - 127) for x in np.array(s).reshape(-1)]
        exact = [float(F(v) * scales[i // size]) if v else v for i, v in enumerate(values)]
        assert t(ref).double().reshape(-1).tolist() == exact
        tensors |= {f"{module}.weight": t(wq), f"{module}.scales": t(s)}
        truths[f"{module}.weight"] = truth(exact, (rows, cols))
        quantization[module] = {"group_size": size, "bits": bits, "mode": mode}
    write("mlx_mixed", tensors, {"model_type": "llama", "quantization": quantization, "quantization_config": quantization}, truths, f"mlx {im.version('mlx')} on a CPU")


def hqq():
    import hqq as library
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    bands = {8: [0], 4: [4, 0], 2: [6, 4, 2, 0], 1: list(range(7, -1, -1)), 3: list(range(27, -1, -3))}
    tensors, truths = {}, {}
    cases = [(8, 32, 1, torch.float16), (4, 16, 0, torch.bfloat16), (3, 16, 1, torch.float32), (2, 8, 0, torch.float16), (1, 8, 1, torch.float16),
             (3, 64, 0, torch.bfloat16), (4, None, 1, torch.float32), (2, 32, 1, torch.bfloat16)]
    for seed, (bits, size, axis, d) in enumerate(cases):
        rows, cols = 24, 64
        linear = torch.nn.Linear(cols, rows, bias=True)
        linear.weight.data, linear.bias.data = weight(rows, cols, 40 + seed), torch.zeros(rows)
        q = HQQLinear(linear, BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis), compute_dtype=d, device="cpu", del_orig=False)
        state = q.state_dict()
        n, g = rows * cols, size or (rows, cols)[axis]
        words = state["W_q"].long() & 0xFFFFFFFF if bits == 3 else state["W_q"].long()
        codes = torch.cat([words >> s & (1 << bits) - 1 for s in bands[bits]])[: g if axis == 0 else n // g].reshape(-1).tolist()
        S, Z = numbers(state["scale"]), numbers(state["zero"])
        group = (lambda i: i // g) if axis == 1 else (lambda i: i % (n // g))
        exact = [(k - Z[group(i)]) * S[group(i)] for i, k in enumerate(codes)]
        module = f"model.layers.0.m{seed}"
        tensors |= {f"{module}.{k}": v for k, v in state.items() if torch.is_tensor(v)}
        truths[f"{module}.weight"] = truth(exact, (rows, cols), q.dequantize())
    write("hqq_mixed", tensors, {"model_type": "llama", "quantization_config": {"quant_method": "hqq"}}, truths, f"hqq {library.__version__}, torch {torch.__version__}, HQQLinear.state_dict")


def gptq():
    import gptqmodel
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for name, to_v1 in (("gptq_mixed", True), ("gptq_v2_mixed", False)):
        tensors, truths, borrows, dynamic = {}, {}, 0, {}
        cases = [(4, 32, 96, 64, False), (8, 32, 128, 32, True), (2, 64, 64, 96, False), (4, 32, 32, 32, True), (8, -1, 64, 32, False)]
        for seed, (bits, size, cols, rows, act) in enumerate(cases):
            g = cols if size < 0 else size
            w = weight(rows, cols, 60 + seed) + torch.linspace(-.05, .05, rows).view(-1, 1)  # so that zero points reach both ends
            grouped = w.reshape(rows, cols // g, g)
            lo, hi = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
            scale = ((hi - lo) / (2**bits - 1)).half().float()
            zero = torch.round(-lo / scale).clamp(0, 2**bits - 1)
            index = torch.arange(cols) // g
            if act:
                index = index[torch.randperm(cols, generator=torch.Generator().manual_seed(seed))]
            linear = torch.nn.Linear(cols, rows, bias=False)
            linear.weight.data = w
            q = TorchLinear(bits=bits, group_size=size, sym=False, desc_act=act, in_features=cols, out_features=rows, bias=False, pack_dtype=torch.int32, register_buffers=True)
            q.pack_original(linear, scale, zero, index.to(torch.int32))
            q.post_init()
            ref = q.dequantize_weight().T
            k = 32 // bits
            u = q.qweight.long() & 0xFFFFFFFF
            codes = torch.stack([u >> bits * j & (1 << bits) - 1 for j in range(k)], 1).reshape(cols, rows)
            exact = ((codes.double() - zero.T.double()[index]) * q.scales.double()[index]).T.reshape(-1)
            assert torch.equal(exact.half(), ref.reshape(-1))
            assert len(set(zero.reshape(-1).tolist())) > 1
            if to_v1:
                borrows += int((zero == 0).sum())
                q = convert_gptq_v2_to_v1_format_module(q, quantize_config=type("C", (), {"bits": bits, "pack_dtype": torch.int32})()) or q
            module = f"model.layers.0.m{seed}"
            if (bits, size) != (4, 32):
                dynamic[f"+:.*\\.m{seed}$"] = {"bits": bits, "group_size": size}
            tensors |= {f"{module}.{n}": getattr(q, n) for n in ("qweight", "qzeros", "scales", "g_idx")}
            truths[f"{module}.weight"] = truth(exact.tolist(), (rows, cols)) | {"library": {"F16": hashlib.sha256((ref.contiguous() + 0).view(torch.uint8).numpy().tobytes()).hexdigest()}}
        assert borrows or not to_v1
        config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq" if to_v1 else "gptq_v2", "dynamic": dynamic,
                  "meta": {"quantizer": [f"gptqmodel:{gptqmodel.__version__}"]}}
        write(name, tensors, {"model_type": "llama", "torch_dtype": "float16", "quantization_config": config}, truths, f"gptqmodel {gptqmodel.__version__}, torch {torch.__version__}, TorchLinear.pack_original")


for name in sys.argv[1:]:
    {"mlx": mlx, "hqq": hqq, "gptq": gptq}[name]()
