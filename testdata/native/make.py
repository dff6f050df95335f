#!/usr/bin/env python3
"""Makes the files here with torch 2.15.0, safetensors 0.8.0 and loralib 0.1.2, all of PyPI:

    make.py loralib
"""
import json, os, sys
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))

def eighths(shape, seed):
    """Random multiples of 1/8: float64 holds every product and sum of them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-12, 13, shape, generator=g, dtype=torch.float64) / 8

def write(case, base, config, merged):
    """Writes a base in BF16, its config.json, and the merged tensors in float64."""
    os.makedirs(f"{HERE}/{case}/base", exist_ok=True)
    save_file({n: t.bfloat16().contiguous() for n, t in base.items()},
              f"{HERE}/{case}/base/model.safetensors")
    json.dump(config, open(f"{HERE}/{case}/base/config.json", "w"), indent=1)
    save_file({n: t.double().contiguous() for n, t in merged.items()},
              f"{HERE}/{case}/merged.safetensors")

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
        changed = {n: t for n, t in model.state_dict().items()
                   if is_base(n) and not torch.equal(t, base[n])}
        write(name, base, config, changed)

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

if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:]:
        {"loralib": loralib}[name]()
