#!/usr/bin/env python3
"""Makes the files here with torch 2.15.0, safetensors 0.8.0, loralib 0.1.2 and torchtune 0.6.1 with
torchao 0.9.0, all of PyPI:

    make.py loralib torchtune mistral
"""
import json, os, sys
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))

def eighths(shape, seed):
    """Random multiples of 1/8: float64 holds every product and sum of them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-12, 13, shape, generator=g, dtype=torch.float64) / 8

def write(case, base, config, merged, to="base", file="model.safetensors", truth="merged"):
    """Writes a base in BF16, its config.json, and the merged tensors in float64."""
    os.makedirs(f"{HERE}/{case}/{to}", exist_ok=True)
    save_file({n: t.bfloat16().contiguous() for n, t in base.items()}, f"{HERE}/{case}/{to}/{file}")
    if config: dump(config, f"{case}/{to}/config.json")
    save_file({n: t.double().contiguous() for n, t in merged.items()},
              f"{HERE}/{case}/{truth}.safetensors")

def dump(value, path):
    with open(f"{HERE}/{path}", "w") as f: json.dump(value, f, indent=1)

def changed(base, merged):
    return {n: t for n, t in merged.items() if not torch.equal(t, base[n])}

def loralib():
    import loralib as lora

    def case(name, model, config, bias, save):
        model = model.double()
        for i, (n, p) in enumerate(model.named_parameters()):
            p.data = eighths(p.shape, i)
        is_base = lambda n: "lora_" not in n
        base = {n: t.clone() for n, t in model.state_dict().items() if is_base(n)}
        trained = lora.lora_state_dict(model, bias=bias)
        for n, t in trained.items():
            if n.endswith("bias"): t += 1 / 4 # trained in full
        os.makedirs(f"{HERE}/{name}", exist_ok=True)
        save({n: t.float() for n, t in trained.items()}, f"{HERE}/{name}/adapter.pt")
        model.eval() # merges
        write(name, base, config,
              changed(base, {n: t for n, t in model.state_dict().items() if is_base(n)}))

    class GPT2(torch.nn.Module):
        def __init__(self):
            super().__init__()
            mod = torch.nn.Module
            self.transformer = t = mod()
            t.wte = lora.Embedding(24, 8, r=2, lora_alpha=8)
            t.h = torch.nn.ModuleList([mod()])
            t.h[0].attn, t.h[0].mlp = mod(), mod()
            o = dict(r=2, lora_alpha=8, fan_in_fan_out=True)
            t.h[0].attn.c_attn = lora.MergedLinear(8, 24, enable_lora=[True, False, True], **o)
            t.h[0].attn.c_proj = lora.Linear(8, 8, **o)
            t.h[0].mlp.c_fc = lora.Linear(8, 32, **o)
    config = {"model_type": "gpt2", "tie_word_embeddings": False}
    case("loralib-gpt2", GPT2(), config, "lora_only",
         lambda d, path: torch.save({"model_state_dict": d}, path)) # as examples/NLG does

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.ModuleList([torch.nn.Module()])
            o = dict(r=4, lora_alpha=2)
            self.layer[0].qkv = lora.MergedLinear(8, 24, enable_lora=[False, False, True], **o)
            self.layer[0].out = lora.Linear(8, 8, **o)
            self.layer[0].norm = torch.nn.LayerNorm(8)
            self.classifier = torch.nn.Linear(8, 3)
    case("loralib-one", One(), {"model_type": "x"}, "all", torch.save)

def torchtune():
    from torchtune.models import convert_weights, llama3, qwen2
    from torchtune.models.qwen2._convert_weights import qwen2_tune_to_hf
    from torchtune.modules.peft import get_adapter_state_dict, get_merged_lora_ckpt
    sizes = dict(vocab_size=16, num_layers=1, num_heads=4, num_kv_heads=2, embed_dim=16,
                 max_seq_len=8, intermediate_dim=24, lora_rank=2, lora_alpha=4)
    heads = dict(num_heads=4, num_kv_heads=2, dim=16)
    config = dict(hidden_size=16, num_attention_heads=4, num_key_value_heads=2, vocab_size=16,
                  tie_word_embeddings=False)
    attention = ["q_proj", "k_proj", "v_proj", "output_proj"]

    def case(name, model, to_hf, config, save):
        model = model.double()
        state = model.state_dict()
        for i, (n, t) in enumerate(sorted(state.items())):
            t.copy_(eighths(t.shape, 100 + i))
            if "magnitude" in n: t.abs_().add_(1)
        adapter = get_adapter_state_dict(state)
        base = {n: t.clone() for n, t in state.items() if n not in adapter}
        merged = get_merged_lora_ckpt({n: t.clone() for n, t in state.items()}, rank=2, alpha=4)
        os.makedirs(f"{HERE}/{name}", exist_ok=True)
        save({n: t.float() for n, t in adapter.items()})
        was, now = to_hf(base, **heads), to_hf(merged, **heads)
        write(name, was, config, changed(was, now))
        return base, merged

    def saved(path, **config):
        def save(adapter):
            os.makedirs(os.path.dirname(f"{HERE}/{path}"), exist_ok=True)
            torch.save(adapter, f"{HERE}/{path}")
            # as lora_finetune_single_device.py and its checkpointer write it
            if config: dump(config, f"{os.path.dirname(path)}/adapter_config.json")
        return save

    peft = dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
                peft_type="LORA", base_model_name_or_path="made/llama")
    llama, to_hf = dict(config, model_type="llama"), convert_weights.tune_to_hf
    model = llama3.lora_llama3(attention, True, True, **sizes)
    base, merged = case("torchtune-llama", model, to_hf, llama,
                        saved("torchtune-llama/epoch_0/adapter_model.pt", **peft))
    was, now = convert_weights.tune_to_meta(base), convert_weights.tune_to_meta(merged)
    own = "consolidated.safetensors"
    write("torchtune-llama", was, None, changed(was, now), "meta", own, "merged-meta")
    case("torchtune-qwen2", qwen2.lora_qwen2(attention, True, **sizes), qwen2_tune_to_hf,
         dict(config, model_type="qwen2"), saved("torchtune-qwen2/adapter_0.pt"))
    model = llama3.lora_llama3(["v_proj", "output_proj"], True, use_dora=True, **sizes)
    case("torchtune-dora", model, to_hf, llama, saved("torchtune-dora/adapter_0.pt"))

def mistral():
    """By the formula of mistral-finetune 1.0 (LoRALinear.merge_weight), which needs a GPU to run.
    The base has its names, and those of transformers with the rows that
    convert_mistral_weights_to_hf.py gives them."""
    n_heads, n_kv, d, dim, hidden, vocab = 4, 2, 4, 16, 24, 16
    shapes = {"wq": (16, dim), "wk": (8, dim), "wv": (8, dim), "wo": (dim, 16)}
    layers = {f"layers.0.attention.{n}": s for n, s in shapes.items()}
    layers |= {f"layers.0.feed_forward.{n}": s for n, s in
               {"w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim)}.items()}
    base = {n + ".weight": eighths(s, 200 + i) for i, (n, s) in enumerate(layers.items())}
    base |= {"tok_embeddings.weight": eighths((vocab, dim), 1), "norm.weight": eighths((dim,), 2),
             "output.weight": eighths((vocab, dim), 3),
             "layers.0.attention_norm.weight": eighths((dim,), 4),
             "layers.0.ffn_norm.weight": eighths((dim,), 5)}
    A = {n: eighths((2, s[1]), 300 + i) for i, (n, s) in enumerate(layers.items())}
    B = {n: eighths((s[0], 2), 400 + i) for i, (n, s) in enumerate(layers.items())}
    merged = dict(base) | {n + ".weight": base[n + ".weight"] + 2.5 * (B[n] @ A[n]) for n in layers}

    def turned(t): # permute_for_rope
        return t.view(t.shape[0] // d, d // 2, 2, t.shape[1]).transpose(1, 2).reshape(t.shape)
    names = {"attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
             "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
             "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
             "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm"}
    top = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    def hf(n):
        module = n.removesuffix(".weight")
        return top.get(module) or "model.layers.0." + names[module.removeprefix("layers.0.")]
    def to_hf(state):
        return {hf(n) + ".weight": turned(t) if n.endswith(("wq.weight", "wk.weight")) else t
                for n, t in state.items()}
    config = dict(model_type="mistral", hidden_size=dim, num_attention_heads=n_heads, head_dim=d,
                  num_key_value_heads=n_kv, vocab_size=vocab, tie_word_embeddings=False)
    for to, known in ("own", None), ("own-config", config):
        write("mistral", base, known, changed(base, merged), to, "consolidated.safetensors",
              "merged-own")
    write("mistral", to_hf(base), config, changed(to_hf(base), to_hf(merged)))
    for d_ in "adapter", "peft": os.makedirs(f"{HERE}/mistral/{d_}", exist_ok=True)
    factors = [(n, x, t[n]) for n in layers for x, t in (("A", A), ("B", B))]
    save_file({f"{n}.lora_{x}.weight": t.bfloat16() for n, x, t in factors},
              f"{HERE}/mistral/adapter/lora.safetensors")
    dump(dict(dim=dim, n_layers=1, head_dim=d, hidden_dim=hidden, n_heads=n_heads, n_kv_heads=n_kv,
              norm_eps=1e-5, vocab_size=vocab, rope_theta=10000.0,
              lora=dict(enable=True, rank=2, dropout=0.0, scaling=2.5), moe=None),
         "mistral/adapter/params.json")
    save_file({f"base_model.model.{hf(n)}.lora_{x}.weight":
               (turned(t) if x == "B" and n.endswith(("wq", "wk")) else t).float().contiguous()
               for n, x, t in factors},
              f"{HERE}/mistral/peft/adapter_model.safetensors")
    dump(dict(peft_type="LORA", r=2, lora_alpha=5, bias="none",
              base_model_name_or_path="made/mistral",
              target_modules=sorted({hf(n).split(".")[-1] for n in layers})),
         "mistral/peft/adapter_config.json")

if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:]:
        globals()[name]()
