"""Quantises a tiny model with mlx-lm, merges an adapter into it with LORATOOL, and loads the mixed output
with mlx-lm: the adapted layer is plain and has W + s·B·A, and the others are quantised still.

    python check_mlx.py LORATOOL
"""
import json, pathlib, subprocess, sys, tempfile
import mlx.core as mx, mlx.nn as nn, numpy as np, torch
import mlx_lm.models.llama as llama
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from safetensors.torch import save_file

root = pathlib.Path(tempfile.mkdtemp())
base, adapter, out = root / "base", root / "adapter", root / "out"
base.mkdir(), adapter.mkdir()
config = dict(model_type="llama", hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
              rms_norm_eps=1e-5, vocab_size=96, rope_theta=10000.0, tie_word_embeddings=False, head_dim=16)
model = llama.Model(llama.ModelArgs.from_dict(config))
model.set_dtype(mx.bfloat16)
model, quantised = quantize_model(model, config, 64, 4)
save_model(base, model), save_config(quantised, config_path=base / "config.json")
g, prefix = torch.Generator().manual_seed(1), "base_model.model.model.layers.0.mlp.down_proj."
a, b = torch.randn(4, 128, generator=g) * .05, torch.randn(64, 4, generator=g) * .05
save_file({prefix + "lora_A.weight": a, prefix + "lora_B.weight": b}, adapter / "adapter_model.safetensors")
(adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["down_proj"]}))
subprocess.run([sys.argv[1], "merge", base, adapter, "-o", out], check=True)
merged, _ = load_model(out)
layers = merged.model.layers
assert type(layers[0].mlp.down_proj) is nn.Linear and type(layers[1].mlp.down_proj) is nn.QuantizedLinear
q = model.model.layers[0].mlp.down_proj
w = np.array(mx.dequantize(q.weight, q.scales, q.biases, group_size=64, bits=4).astype(mx.float32)) + (2 * b @ a).numpy()
error = abs(np.array(layers[0].mlp.down_proj.weight.astype(mx.float32)) - w).max()
assert error <= 2**-7 * abs(w).max(), error
assert mx.isfinite(merged(mx.array([[1, 2, 3]]))).all()
print("mlx-lm loads the output; largest difference", error)
