#!/usr/bin/env python3
"""Makes the bases here with gguf-py 0.19.0, safetensors and numpy: make.py. Each directory has

    base.gguf      a model, as llama.cpp's converter lays it out: rows of q and k in its order
    peft/          an adapter with random factors, in the names of transformers
    adapter.gguf   the same adapter in llama.cpp's layout
    transformers/  plain alone: the same model in the names of transformers, as F32
    expected.json  the SHA-256 of each merged tensor: exact sums in rational numbers, each rounded once

A base that is split has its parts, base-00001-of-00003.gguf and so on, as gguf-py divides a model.

Nothing here comes from the code under test."""
import hashlib, json, os, shutil, sys
from fractions import Fraction
import numpy as np
import gguf
from gguf import GGUFWriter, GGMLQuantizationType as T

HERE = os.path.dirname(os.path.abspath(__file__))
HEADS, KV, VOCAB, R, ALPHA = 4, 2, 20, 3, 5

def round_to(x, dtype):
    """Rounds a rational number to nearest even, and returns its bits. No number here overflows."""
    p, emin, ebits = {"F32": (24, -149, 8), "F16": (11, -24, 5), "BF16": (8, -133, 8)}[dtype]
    sign = (1 << (ebits + p - 1)) if x < 0 else 0
    x = abs(x)
    if x == 0:
        return sign
    e = max(emin, x.numerator.bit_length() - x.denominator.bit_length() - p)
    while True:  # the largest exponent e with x >= 2**(p-1+e), or emin
        q = x / Fraction(2) ** e
        if q >= 2 ** p: e += 1
        elif q < 2 ** (p - 1) and e > emin: e -= 1
        else: break
    n, rest = divmod(q.numerator, q.denominator)
    n += 2 * rest > q.denominator or 2 * rest == q.denominator and n % 2
    if n == 2 ** p:
        n, e = n // 2, e + 1
    if n < 2 ** (p - 1):
        return sign | n
    bias = -emin - p + 2
    return sign | ((e + p - 1 + bias) << (p - 1)) | (n - 2 ** (p - 1))

def digest(values, dtype):
    bits = np.array([round_to(v, dtype) for v in values.reshape(-1)], dtype="<u4" if dtype == "F32" else "<u2")
    return hashlib.sha256(bits.tobytes()).hexdigest()

def rationals(x):
    f = np.vectorize(lambda v: Fraction(float(v)), otypes=[object])
    return f(np.asarray(x, np.float64))

def permute(w, heads):
    """As LlamaModel.permute of llama.cpp's conversion does."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)

def bf16(x):
    """Rounds to bfloat16, as float32."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000).astype(np.uint32).view(np.float32)

def q4_k(blocks):
    """Decodes Q4_K in float64, which holds its values exactly; float32 does not."""
    out = []
    for b in blocks:
        d, m = b[:4].view(np.float16).astype(np.float64)
        s, q = b[4:16].astype(int), b[16:]
        for j in range(8):
            sc, mn = (s[j] & 63, s[j + 4] & 63) if j < 4 else (
                (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4)
            codes = q[32 * (j // 2):][:32]
            codes = codes >> 4 if j % 2 else codes & 15
            out.append(d * sc * codes - m * mn)
    return np.concatenate(out)

def store(w, x, name, values, of, rng):
    """Adds a tensor of a type to a file. Returns its exact values."""
    if of == "F32":
        w.add_tensor(name, values.astype(np.float32))
        return values.astype(np.float32)
    if of == "F16":
        w.add_tensor(name, values.astype(np.float16))
        return values.astype(np.float16)
    if of == "BF16":
        v = bf16(values)
        w.add_tensor(name, (v.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), raw_dtype=T.BF16)
        return v
    t = T[of]
    n, size = gguf.GGML_QUANT_SIZES[t]
    rows = int(np.prod(values.shape[:-1]))
    if of in ("Q4_K", "Q6_K", "NVFP4"):  # which gguf-py does not write: random codes, scales of the right size
        raw = rng.integers(0, 256, (rows * values.shape[-1] // n, size), dtype=np.uint8)
        if of == "NVFP4":
            raw[:, :4] = rng.integers(0x28, 0x48, raw[:, :4].shape)
        else:
            scale = np.float16(0.001) * rng.random(len(raw)).astype(np.float16)
            at = [0, 2] if of == "Q4_K" else [208]
            for k in at:
                raw[:, k:k + 2] = scale.view(np.uint8).reshape(-1, 2)
    else:
        raw = gguf.quants.quantize(values.astype(np.float32), t).reshape(-1, size)
    w.add_tensor(name, raw.reshape(*values.shape[:-1], -1), raw_dtype=t)
    exact = q4_k(raw) if of == "Q4_K" else gguf.quants.dequantize(raw, t).astype(np.float64)
    return exact.reshape(values.shape)

def keys(w, arch, hidden, inner, experts, file_type):
    """Keys of several types, in an order of their own."""
    w.add_file_type(file_type)
    w.add_name("made")
    w.add_uint32(f"{arch}.block_count", 1), w.add_uint32(f"{arch}.context_length", 64)
    w.add_uint32(f"{arch}.embedding_length", hidden), w.add_uint32(f"{arch}.feed_forward_length", inner)
    w.add_uint32(f"{arch}.attention.head_count", HEADS), w.add_uint32(f"{arch}.attention.head_count_kv", KV)
    w.add_uint32(f"{arch}.rope.dimension_count", hidden // HEADS), w.add_uint32(f"{arch}.vocab_size", VOCAB)
    w.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    if experts:
        w.add_uint32(f"{arch}.expert_count", experts), w.add_uint32(f"{arch}.expert_used_count", 2)
    w.add_array("tokenizer.ggml.tokens", [f"t{i}ß" for i in range(VOCAB)])
    w.add_array("tokenizer.ggml.scores", [0.5 * i for i in range(VOCAB)])
    w.add_bool("tokenizer.ggml.add_bos_token", True)

def llama(hidden, inner):
    """The module and the shape of each tensor."""
    kv = hidden // HEADS * KV
    return {"token_embd": ("model.embed_tokens", (VOCAB, hidden)), "output": ("lm_head", (VOCAB, hidden)),
            "blk.0.attn_q": ("model.layers.0.self_attn.q_proj", (hidden, hidden)),
            "blk.0.attn_k": ("model.layers.0.self_attn.k_proj", (kv, hidden)),
            "blk.0.attn_v": ("model.layers.0.self_attn.v_proj", (kv, hidden)),
            "blk.0.attn_output": ("model.layers.0.self_attn.o_proj", (hidden, hidden)),
            "blk.0.ffn_gate": ("model.layers.0.mlp.gate_proj", (inner, hidden)),
            "blk.0.ffn_up": ("model.layers.0.mlp.up_proj", (inner, hidden)),
            "blk.0.ffn_down": ("model.layers.0.mlp.down_proj", (hidden, inner))}

SMALL = llama(32, 48)
EXPERTS = 3

def experts(gate, up, down, path):
    names = {k: v for k, v in SMALL.items() if "attn" in k}
    for part, leaf, shape in (("gate", gate, (24, 32)), ("up", up, (24, 32)), ("down", down, (32, 24))):
        names[f"blk.0.ffn_{part}_exps"] = (f"model.layers.0.{path}.{{}}.{leaf}", (EXPERTS, *shape))
    return names

def case(name, names, types, arch="llama", adapted=None, pairs=True, default="BF16", out="F16", alignment=32, scales={}, split={}, norms=None, untied=False):
    """types: the type of each tensor, else default. adapted: the tensors that the adapter changes."""
    rng = np.random.default_rng(sum(name.encode()))
    d = f"{HERE}/{name}"
    shutil.rmtree(d, ignore_errors=True)
    os.makedirs(d + "/peft")
    w, x = GGUFWriter(d + "/base.gguf", arch, **split), GGUFWriter(d + "/adapter.gguf", arch)
    if alignment != 32:
        w.add_custom_alignment(alignment)
    hidden, inner = names["blk.0.attn_q"][1][1], names.get("blk.0.ffn_up", (0, (24,)))[1][0]
    keys(w, arch, hidden, inner, EXPERTS if any("exps" in n for n in names) else 0, {"BF16": 32, "F16": 1, "Q8_0": 7, "Q4_K": 15, "F32": 0}[default])
    factors, expected, own = {}, {}, {}
    adapted = names if adapted is None else adapted
    for tensor, (module, shape) in names.items():
        of = types.get(tensor, default)
        values = rng.standard_normal(shape) / 8
        heads = {"attn_q": HEADS, "attn_k": KV}.get(tensor.split(".")[-1], 0) if pairs else 0
        stored = bf16(values) if of == "BF16" else values
        if tensor == "output" and untied:  # the base lacks it, and its values are those of the embedding
            exact, of = embedding
        else:
            exact = store(w, x, tensor + ".weight", permute(stored, heads) if heads else stored, of, rng)
        if tensor == "token_embd":
            embedding = exact, of
        own[module + ".weight"] = (stored if heads else exact).astype(np.float32)
        if tensor in scales:
            w.add_tensor(tensor + ".scale", np.array([scales[tensor]], np.float32))
            exact = exact * np.float64(np.float32(scales[tensor]))
            if tensor in (names if adapted is None else adapted):
                expected[tensor + ".scale"] = ["F32", digest(np.array([Fraction(1)]), "F32")]  # for the values have it
        if tensor not in adapted:
            continue
        merged = rationals(exact)
        s = Fraction(ALPHA) / R
        stack_a, stack_b = [], []
        for e in range(shape[0] if len(shape) == 3 else 1):
            at = module.format(e)
            m, n = shape[-2:]
            a, b = (rng.standard_normal(k).astype(np.float32) / 4 for k in ((R, n), (m, R)))
            key = f"base_model.model.{at}"
            if tensor == "token_embd":
                factors[key + ".lora_embedding_A"], factors[key + ".lora_embedding_B"] = (
                    np.ascontiguousarray(b.T), np.ascontiguousarray(a.T))
            else:
                factors[key + ".lora_A.weight"], factors[key + ".lora_B.weight"] = a, b
            b = permute(b, heads) if heads else b
            # A float holds a scale of 5/3 rounded once, as every program computes it.
            delta = np.dot(rationals(b), rationals(a)) * Fraction(float(ALPHA) / R)
            if len(shape) == 3: merged[e] = merged[e] + delta
            else: merged = merged + delta
            stack_a.append(a), stack_b.append(b)
        to = of if of in ("F32", "F16", "BF16") else "BF16" if of in ("MXFP4", "NVFP4") else out
        expected[tensor + ".weight"] = [to, digest(merged, to)]
        a, b = (np.stack(stack_a), np.stack(stack_b)) if len(shape) == 3 else (stack_a[0], stack_b[0])
        if tensor == "token_embd":
            x.add_tensor(tensor + ".weight.lora_a", np.ascontiguousarray(b)), x.add_tensor(tensor + ".weight.lora_b", np.ascontiguousarray(a.T))
        else:
            x.add_tensor(tensor + ".weight.lora_a", a), x.add_tensor(tensor + ".weight.lora_b", b)
    for norm in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        own[(norms or {}).get(norm, norm) + ".weight"] = values = rng.random(hidden).astype(np.float32)
        w.add_tensor(norm + ".weight", values)
    x.add_type("adapter"), x.add_string("adapter.type", "lora"), x.add_float32("adapter.lora.alpha", ALPHA)
    for f in (w, x):
        if split and f is w:
            f.open_output_file()
        f.write_header_to_file(), f.write_kv_data_to_file(), f.write_tensors_to_file(), f.close()
    from safetensors.numpy import save_file
    save_file(factors, d + "/peft/adapter_model.safetensors")
    modules = sorted({k.removeprefix("base_model.model.").split(".lora_")[0] for k in factors})
    json.dump(dict(peft_type="LORA", r=R, lora_alpha=ALPHA, target_modules=modules, bias="none",
                   base_model_name_or_path="made/" + name), open(d + "/peft/adapter_config.json", "w"), indent=1)
    if norms:
        os.makedirs(d + "/transformers")
        save_file(own, d + "/transformers/model.safetensors", metadata={"format": "pt"})
        json.dump(dict(model_type="llama", hidden_size=hidden, num_attention_heads=HEADS, tie_word_embeddings=False),
                  open(d + "/transformers/config.json", "w"))
    json.dump(expected, open(d + "/expected.json", "w"), indent=1)

def stacked(name, arch, inner, types={}, interleaved=False, turned=False, version="0.21.2"):
    """A base with experts alone, and an adapter of PEFT for its parameters (target_parameters). A model of
    transformers has gate_up_proj (E, 2*inner, hidden), rows of the gate first, and down_proj (E, hidden, inner); gpt-oss
    has both transposed, and gate and up in turns. turned: as PEFT 0.17 read the shape of a parameter."""
    rng, hidden, r = np.random.default_rng(sum(name.encode())), 32, 2
    d = f"{HERE}/{name}"
    shutil.rmtree(d, ignore_errors=True)
    os.makedirs(d + "/peft")
    w = GGUFWriter(d + "/base.gguf", arch)
    keys(w, arch, hidden, inner, EXPERTS, 32)
    path = "model.layers.0.mlp.experts"
    factors, expected, delta = {}, {}, {}
    for parameter, key, m, n in (("gate_up_proj", path + ".base_layer", 2 * inner, hidden), ("down_proj", path, hidden, inner)):
        if turned:
            m, n = n, m
        a = rng.standard_normal((EXPERTS * r, n)).astype(np.float32) / 4
        b = rng.standard_normal((m, r * EXPERTS)).astype(np.float32) / 4
        factors[f"base_model.model.{key}.lora_A.weight"], factors[f"base_model.model.{key}.lora_B.weight"] = a, b
        a, b = rationals(a.reshape(EXPERTS, r, n)), rationals(b.reshape(m, r, EXPERTS))
        # get_delta_weight of PEFT: einsum("o r e, e r i -> e o i"), in PEFT 0.17 "-> e i o"
        x = np.stack([np.dot(b[:, :, e], a[e]) * Fraction(float(ALPHA) / r) for e in range(EXPERTS)])
        delta[parameter] = x.swapaxes(1, 2) if turned else x
    gate_up = delta["gate_up_proj"]  # rows of outputs, in any model
    gate, up = (gate_up[:, 0::2], gate_up[:, 1::2]) if interleaved else (gate_up[:, :inner], gate_up[:, inner:])
    for tensor, x in (("gate", gate), ("up", up), ("down", delta["down_proj"])):
        tensor, values = f"blk.0.ffn_{tensor}_exps", rng.standard_normal(x.shape) / 8
        of = types.get(tensor, "BF16")
        exact = store(w, None, tensor + ".weight", bf16(values) if of == "BF16" else values, of, rng)
        to = "F16" if of == "Q8_0" else "BF16"
        expected[tensor + ".weight"] = [to, digest(rationals(exact) + x, to)]
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    from safetensors.numpy import save_file
    save_file(factors, d + "/peft/adapter_model.safetensors")
    json.dump(dict(peft_type="LORA", r=r, lora_alpha=ALPHA, target_modules=[], bias="none", peft_version=version,
                   target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
                   base_model_name_or_path="made/" + name), open(d + "/peft/adapter_config.json", "w"), indent=1)
    json.dump(expected, open(d + "/expected.json", "w"), indent=1)

def main():
    case("plain", SMALL, {"blk.0.attn_v": "F16", "blk.0.ffn_up": "F32"}, alignment=64, norms={
        "blk.0.attn_norm": "model.layers.0.input_layernorm", "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
        "output_norm": "model.norm"})
    case("tied", {k: v for k, v in SMALL.items() if k != "output"}, {}, adapted=["blk.0.attn_q", "blk.0.ffn_up"])
    case("mixtral", experts("w1", "w3", "w2", "block_sparse_moe.experts"), {})
    case("qwen2", SMALL, {}, arch="qwen2", pairs=False, default="F16")
    names = llama(64, 256)
    case("quantised", names, {
        "blk.0.attn_q": "Q8_0", "blk.0.attn_k": "Q4_0", "blk.0.attn_v": "Q5_1", "blk.0.attn_output": "MXFP4",
        "blk.0.ffn_gate": "NVFP4", "blk.0.ffn_up": "NVFP4", "blk.0.ffn_down": "Q4_K"}, default="Q8_0",
        scales={"blk.0.ffn_up": 0.0037}, adapted=[n for n in names if n not in ("token_embd", "output")])
    case("split", names, {"blk.0.attn_q": "Q8_0", "blk.0.ffn_down": "Q4_K", "blk.0.ffn_up": "MXFP4"}, default="Q8_0",
         adapted=["blk.0.attn_q", "blk.0.attn_v", "blk.0.attn_output", "blk.0.ffn_gate", "blk.0.ffn_down"], split={"split_max_tensors": 5})
    case("untied", names, {}, default="Q8_0", adapted=["output", "blk.0.attn_v"], split={"split_max_tensors": 4}, untied=True)
    case("split-plain", SMALL, {}, adapted=["blk.0.ffn_down", "blk.0.ffn_gate"], split={"split_max_tensors": 4, "small_first_shard": True})
    stacked("stacked-mixtral", "llama", 24)
    stacked("stacked-mixtral-old", "llama", 24, turned=True, version="0.17.1")
    stacked("stacked-qwen3moe", "qwen3moe", 32, {"blk.0.ffn_down_exps": "Q8_0"})
    stacked("stacked-gpt-oss", "gpt-oss", 24, interleaved=True)
    stacked("stacked-gpt-oss-square", "gpt-oss", 32, {"blk.0.ffn_gate_exps": "MXFP4", "blk.0.ffn_down_exps": "MXFP4"}, interleaved=True)

if __name__ == "__main__":
    main()
