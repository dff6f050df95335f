#!/usr/bin/env python3
"""Writes adapters in shards, with torch 2.15.0, peft 0.21.2 and transformers 5.24.0:

    python make.py

base/ is a model, transformers/ an adapter as add_adapter and save_pretrained(max_shard_size) of
transformers write it, and pickled/ the same tensors in shards of torch.save. merged.safetensors has
the weights that change: W + s·B·A, computed over fractions and rounded once.
"""
import json, os, shutil
from fractions import Fraction
from math import frexp, ldexp
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import peft, torch, transformers
import transformers.integrations.peft as integration
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
PREFIX = "base_model.model."

def bf16(x: Fraction) -> float:
    """Rounds to the nearest BF16, ties to even; all values here are normal."""
    if not x:
        return 0.0
    exponent = frexp(float(x))[1] - 8
    scaled = x * Fraction(2) ** -exponent
    return ldexp(round(scaled), exponent)  # round() of a fraction takes ties to even

def merged(weight, a, b, scale):
    w, a, b = (t.double().tolist() for t in (weight, a, b))
    exact = [[Fraction(w[i][j]) + scale * sum(Fraction(b[i][k]) * Fraction(a[k][j]) for k in range(len(a)))
              for j in range(len(w[0]))] for i in range(len(w))]
    return torch.tensor([[bf16(x) for x in row] for row in exact], dtype=torch.float64).bfloat16()

def main():
    for name in ("base", "transformers", "pickled"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=20, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(HERE / "base")
    integration.check_peft_version = lambda **_: None  # it asks the installed packages
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"],
                                      init_lora_weights=False))
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape).float() / 4
    model.save_pretrained(HERE / "transformers", max_shard_size=1024)
    for d in ("base", "transformers"):
        (HERE / d / "generation_config.json").unlink(missing_ok=True)
    tensors = {}
    (HERE / "pickled").mkdir()
    shutil.copy(HERE / "transformers" / "adapter_config.json", HERE / "pickled")
    for path in sorted((HERE / "transformers").glob("*.safetensors")):
        shard = load_file(path)
        tensors |= shard
        torch.save(shard, HERE / "pickled" / path.with_suffix(".bin").name)
    base, truth = load_file(HERE / "base" / "model.safetensors"), {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(PREFIX).replace(".lora_A.weight", ".weight")
            truth[name] = merged(base[name], tensors[key], tensors[key.replace("_A", "_B")], 2)
    save_file(truth, HERE / "merged.safetensors")

main()
