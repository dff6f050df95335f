#!/usr/bin/env python3
"""Makes the files here with gguf-py 0.19.0 (PyPI), and the adapters with transformers 5.24.0, torch,
and llama.cpp's convert_lora_to_gguf.py of commit 0c1e57098:

    make.py types
    make.py names
    make.py adapters LLAMA_CPP    (the directory of a checkout)
"""
import hashlib, json, os, shutil, subprocess, sys
import numpy as np
import gguf
from gguf import GGUFReader, GGUFWriter, GGUFValueType as V

HERE = os.path.dirname(os.path.abspath(__file__))

def types():
    """types.gguf has every type of values and of tensors that gguf-py writes; types.txt is the list
    that its reader makes of the file."""
    path = f"{HERE}/types.gguf"
    w = GGUFWriter(path, "llama")
    w.add_uint8("v.u8", 200), w.add_int8("v.i8", -3), w.add_uint16("v.u16", 60000)
    w.add_int16("v.i16", -300), w.add_uint32("v.u32", 4000000000), w.add_int32("v.i32", -70000)
    w.add_float32("v.f32", 0.1), w.add_float64("v.f64", 0.1), w.add_bool("v.bool", True)
    w.add_string("v.text", "größe"), w.add_uint64("v.u64", 2**63), w.add_int64("v.i64", -2**62)
    w.add_array("v.words", ["a", "", "ß"]), w.add_array("v.numbers", [1, 2, 3])
    w.add_key_value("v.tokens", [1, 2**31], V.ARRAY, V.UINT32)
    rng = np.random.default_rng(1)
    for t, (n, size) in gguf.GGML_QUANT_SIZES.items():
        if t.name == "Q8_1":
            continue  # of computations only; gguf-py has another size for it than ggml
        raw = rng.integers(0, 256, (2, 3 * size), dtype=np.uint8)
        dtype = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8,
                 "I16": np.int16, "I32": np.int32, "I64": np.int64}.get(t.name)
        if dtype:
            w.add_tensor("t." + t.name, raw.view(dtype).reshape(2, 3))
        else:
            w.add_tensor("t." + t.name, raw, raw_dtype=t)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    names = {V.UINT8: "uint8", V.INT8: "int8", V.UINT16: "uint16", V.INT16: "int16",
             V.UINT32: "uint32", V.INT32: "int32", V.FLOAT32: "float32", V.FLOAT64: "float64",
             V.BOOL: "bool", V.STRING: "string", V.UINT64: "uint64", V.INT64: "int64",
             V.ARRAY: "array"}
    r = GGUFReader(path)
    with open(f"{HERE}/types.txt", "w") as f:
        for key, field in r.fields.items():
            if not key.startswith("GGUF."):
                print("key", key, names[field.types[0]], file=f)
        for t in r.tensors:
            raw = np.asarray(t.data).view(np.uint8)
            ints = lambda all: ",".join(str(int(x)) for x in all)
            print("tensor", t.name, t.tensor_type.name, ints(t.shape),
                  ints([t.data_offset, t.n_bytes, raw.astype(np.int64).sum()]), file=f)

ARCHITECTURES = ["llama", "granite", "smollm3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma",
                 "gemma2", "gemma3", "olmo2", "command-r", "cohere2", "gpt-oss", "phi3", "starcoder2",
                 "gpt2"]
MODULES = """self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj self_attn.qkv_proj
mlp.gate_proj mlp.up_proj mlp.down_proj mlp.gate_up_proj mlp.c_fc mlp.c_proj mlp.gate mlp.router
mlp.experts.gate_proj mlp.experts.up_proj mlp.experts.down_proj mlp.shared_expert.gate_proj
mlp.shared_expert.up_proj mlp.shared_expert.down_proj mlp.shared_expert_gate
block_sparse_moe.gate block_sparse_moe.experts.w1 block_sparse_moe.experts.w2
block_sparse_moe.experts.w3""".split()
GPT2 = "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj".split()

def names():
    """names.txt: the tensor that gguf-py's tables give each module, for each architecture that has
    the tensor. Mixtral's experts have the names that llama.cpp's LlamaModel gives them."""
    with open(f"{HERE}/names.txt", "w") as f:
        for name in ARCHITECTURES:
            arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
            table = gguf.get_tensor_name_map(arch, 12)
            modules = ["transformer.wte", "lm_head"] + [f"transformer.h.11.{m}" for m in GPT2]
            if name != "gpt2":
                modules = ["model.embed_tokens", "lm_head"] + [f"model.layers.11.{m}" for m in MODULES]
            for m in modules:
                lookup = m.replace("block_sparse_moe.experts", "feed_forward.experts")
                if "feed_forward" in lookup: lookup = lookup.removeprefix("model.")
                tensor = table.get_name(lookup + ".weight", try_suffixes=(".weight",))
                if tensor: print(name, m, tensor, file=f)

def rank(shape, r, rng, dtype):
    import torch
    return torch.tensor(rng.standard_normal(shape).astype(np.float32) / 4).to(dtype)

def adapter(case, modules, r=4, alpha=8, dtype=None, embedding=False, **config):
    """Writes an adapter as PEFT lays it out, with random factors."""
    import torch
    from safetensors.torch import save_file
    rng = np.random.default_rng(len(case))
    dtype, tensors = dtype or torch.float32, {}
    for name, (m, n) in modules.items():
        a, b = (".lora_A.weight", ".lora_B.weight")
        if embedding and name.endswith(("embed_tokens", "wte")):
            a, b = ".lora_embedding_A", ".lora_embedding_B"
            m, n = n, m
        tensors[f"base_model.model.{name}{a}"] = rank((r, n), r, rng, dtype)
        tensors[f"base_model.model.{name}{b}"] = rank((m, r), r, rng, dtype)
    d = f"{HERE}/{case}/peft"
    os.makedirs(d, exist_ok=True)
    save_file(tensors, d + "/adapter_model.safetensors")
    c = dict(peft_type="LORA", r=r, lora_alpha=alpha, target_modules=sorted({*modules}),
             base_model_name_or_path="made/" + case, bias="none", **config)
    json.dump(c, open(d + "/adapter_config.json", "w"), indent=1)

def base(case, config, modules):
    """Writes a base: config.json and the weights of the modules alone."""
    import torch
    from safetensors.torch import save_file
    rng = np.random.default_rng(7)
    d = f"{HERE}/{case}/base"
    os.makedirs(d, exist_ok=True)
    save_file({n + ".weight": rank(s, 0, rng, torch.bfloat16) for n, s in modules.items()},
              d + "/model.safetensors")
    json.dump(config, open(d + "/config.json", "w"), indent=1)

def values(case):
    """values.txt: the digest of each tensor's values in F32 as gguf-py decodes them."""
    with open(f"{HERE}/{case}/values.txt", "w") as f:
        for t in GGUFReader(f"{HERE}/{case}/reference.gguf").tensors:
            values = gguf.quants.dequantize(t.data, t.tensor_type).astype("<f4")
            print(t.name, t.tensor_type.name, hashlib.sha256(values.tobytes()).hexdigest(), file=f)

def adapters(llama_cpp):
    import torch
    common = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
                  num_key_value_heads=2, head_dim=4, vocab_size=32, max_position_embeddings=64,
                  rms_norm_eps=1e-5, rope_theta=10000.0, torch_dtype="bfloat16",
                  tie_word_embeddings=False)
    attention = {"q_proj": (24, 24), "k_proj": (8, 24), "v_proj": (8, 24), "o_proj": (24, 24)}
    mlp = {"gate_proj": (40, 24), "up_proj": (40, 24), "down_proj": (24, 40)}
    ends = {"model.embed_tokens": (32, 24), "lm_head": (32, 24)}
    def llama(layers=2, moe=None):
        all = {}
        for i in range(layers):
            all |= {f"model.layers.{i}.self_attn.{m}": s for m, s in attention.items()}
            all |= {f"model.layers.{i}.{m}": s for m, s in (moe or {f"mlp.{m}": s for m, s in mlp.items()}).items()}
        return all
    def case(name, architecture, model_type, modules, config={}, converts=True, to="f32", **kw):
        shutil.rmtree(f"{HERE}/{name}", ignore_errors=True)
        config = {**common, "architectures": [architecture], "model_type": model_type, **config}
        base(name, config, modules), adapter(name, modules, **kw)
        if not converts: return
        out = f"{HERE}/{name}/reference.gguf"
        subprocess.run([sys.executable, llama_cpp + "/convert_lora_to_gguf.py", "--base",
                        f"{HERE}/{name}/base", "--outtype", to, "--outfile", out,
                        f"{HERE}/{name}/peft"], check=True)
    case("llama", "LlamaForCausalLM", "llama", llama() | ends, embedding=True)
    case("granite", "GraniteForCausalLM", "granite", llama(1), dict(
        attention_multiplier=1.0, embedding_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0),
        dtype=torch.bfloat16, alpha=3)
    experts = {f"block_sparse_moe.experts.{e}.{w}": s for e in range(3)
               for w, s in {"w1": (40, 24), "w2": (24, 40), "w3": (40, 24)}.items()}
    case("mixtral", "MixtralForCausalLM", "mixtral", llama(1, {"block_sparse_moe.gate": (3, 24)} | experts),
         dict(num_local_experts=3, num_experts_per_tok=2, sliding_window=None))
    experts = {f"mlp.experts.{e}.{w}": s for e in range(3)
               for w, s in {"gate_proj": (16, 24), "up_proj": (16, 24), "down_proj": (24, 16)}.items()}
    shared = {f"mlp.shared_expert.{m}": s for m, s in mlp.items()} | {"mlp.shared_expert_gate": (1, 24)}
    case("qwen2moe", "Qwen2MoeForCausalLM", "qwen2_moe", llama(1, {"mlp.gate": (3, 24)} | experts | shared),
         dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16,
              shared_expert_intermediate_size=40))
    case("phi3", "Phi3ForCausalLM", "phi3", {
        "model.layers.0.self_attn.qkv_proj": (40, 24), "model.layers.0.self_attn.o_proj": (24, 24),
        "model.layers.0.mlp.gate_up_proj": (80, 24), "model.layers.0.mlp.down_proj": (24, 40)},
        dict(original_max_position_embeddings=64, num_hidden_layers=1))
    # 40 columns are no blocks, so that A of down_proj is F16.
    case("blocks", "LlamaForCausalLM", "llama", {
        "model.embed_tokens": (8, 32), "model.layers.0.self_attn.q_proj": (32, 32),
        "model.layers.0.mlp.down_proj": (32, 40)},
        dict(hidden_size=32, num_attention_heads=8, num_hidden_layers=1, vocab_size=8), to="q8_0", r=32,
        embedding=True)
    values("blocks")
    # llama.cpp's converter loses what these have; the tests know the formula.
    case("rslora", "LlamaForCausalLM", "llama", llama(1), converts=False, use_rslora=True, r=2)
    case("pattern", "Qwen3ForCausalLM", "qwen3", llama(1), converts=False,
         alpha_pattern={"q_proj": 2, "up_proj": 32})
    case("uneven", "Qwen2ForCausalLM", "qwen2", llama(1), converts=False,
         alpha_pattern={"q_proj": 3, "up_proj": 5})
    # It transposes Conv1D, whose factors PEFT does not store transposed; llama.cpp refuses the file.
    shutil.rmtree(f"{HERE}/gpt2", ignore_errors=True)
    modules = {"transformer.h.0.attn.c_attn": (72, 24), "transformer.h.0.attn.c_proj": (24, 24),
               "transformer.h.0.mlp.c_fc": (96, 24), "transformer.h.0.mlp.c_proj": (24, 96)}
    base("gpt2", dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=24, n_head=6,
                      n_layer=1, vocab_size=32, n_positions=64),
         {n: (i, o) for n, (o, i) in modules.items()})
    adapter("gpt2", modules, fan_in_fan_out=True)

if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
