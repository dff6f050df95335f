"""Shows that transformers loads what loratool writes from quantised bases, on a CPU: tiny models of the real
classes, quantised, merged as a mixed output and wholly decoded, and their logits beside those of the
library's own dequantised model in float32 with PEFT's merge. transformers 5.24.0, peft 0.21.2, torch 2.15.0.

    python check_transformers.py /path/to/loratool
"""
import json, os, subprocess, sys, tempfile, warnings
warnings.filterwarnings("ignore")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
import torch, transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
LORATOOL, D = sys.argv[1], tempfile.mkdtemp()
X = torch.arange(1, 33).reshape(1, -1)


def logits(model):
    with torch.no_grad():
        return model.eval()(X).logits.float()


def adapter(model, name, **config):
    p = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **config))
    for n, x in p.named_parameters():
        if "lora_" in n:
            x.data = torch.randn_like(x) * .05
    p.save_pretrained(f"{D}/{name}")


def store(name, tensors, source, quantization):
    os.makedirs(f"{D}/{name}")
    save_file({k: v.contiguous() for k, v in tensors.items()}, f"{D}/{name}/model.safetensors", metadata={"format": "pt"})
    config = json.load(open(f"{D}/{source}/config.json"))
    json.dump({**config, "quantization_config": quantization}, open(f"{D}/{name}/config.json", "w"), indent=1)


def check(base, lora, want):
    for out, flags in ("mixed", []), ("whole", ["--dequantise"]), ("f32", ["--dequantise", "--out-dtype", "f32"]):
        subprocess.run([LORATOOL, "merge", f"{D}/{base}", f"{D}/{lora}", "-o", f"{D}/{base}-{out}", "--quiet", *flags], check=True)
        model = AutoModelForCausalLM.from_pretrained(f"{D}/{base}-{out}")
        kinds = sorted({type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__ or "Experts" in type(m).__name__})
        got = logits(model)
        print(f"{base:8s} {out:6s} {str(model.dtype)[6:]:9s} largest difference of logits {(got - want).abs().max():.2g} of {want.abs().max():.3g}  {', '.join(kinds)}")


torch.manual_seed(0)
config = LlamaConfig(hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     vocab_size=128, max_position_embeddings=64, tie_word_embeddings=False)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(f"{D}/llama")
adapter(LlamaForCausalLM.from_pretrained(f"{D}/llama"), "llama-lora", target_modules=["q_proj", "down_proj"], layers_to_transform=[0])
codes, values = {}, {}
for k, v in load_file(f"{D}/llama/model.safetensors").items():
    if "layers" not in k or v.dim() != 2:
        codes[k], values[k] = v, v.float()
        continue
    s = torch.stack([torch.stack([b.float().abs().max() / 448 for b in r.split(128, 1)]) for r in v.split(128, 0)])
    whole = s.repeat_interleave(128, 0)[: v.shape[0]].repeat_interleave(128, 1)[:, : v.shape[1]]
    codes[k], codes[k + "_scale_inv"] = (v.float() / whole).to(torch.float8_e4m3fn), s
    values[k] = codes[k].float() * whole
store("fp8", codes, "llama", {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})
model = LlamaForCausalLM(config).float()
model.load_state_dict(values)
check("fp8", "llama-lora", logits(PeftModel.from_pretrained(model, f"{D}/llama-lora").merge_and_unload()))

config = GptOssConfig(num_hidden_layers=2, num_local_experts=3, hidden_size=64, intermediate_size=32, num_attention_heads=4,
                      num_key_value_heads=2, head_dim=16, vocab_size=64, num_experts_per_tok=2)
GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(f"{D}/oss")
adapter(GptOssForCausalLM.from_pretrained(f"{D}/oss"), "oss-lora", target_modules=["q_proj"], layers_to_transform=[0],
        target_parameters=["layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.down_proj"])
codes, values = {}, {}
lut = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])
for k, v in load_file(f"{D}/oss/model.safetensors").items():
    if not k.endswith(("gate_up_proj", "down_proj")):
        codes[k], values[k] = v, v.float()
        continue
    g = v.float().transpose(1, 2).reshape(v.shape[0], v.shape[2], -1, 32)
    e = torch.floor(torch.log2(g.abs().amax(-1).clamp(min=1e-30))) - 2
    q = (g / torch.exp2(e)[..., None])[..., None].sub(lut).abs().argmin(-1)
    codes[k + "_blocks"] = (q[..., 0::2] | q[..., 1::2] << 4).to(torch.uint8)
    codes[k + "_scales"] = (e + 127).to(torch.uint8)
    values[k] = (lut[q] * torch.exp2(e)[..., None]).flatten(2).transpose(1, 2).contiguous()
store("mxfp4", codes, "oss", {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]})
model = GptOssForCausalLM(config).float()
model.load_state_dict(values)
check("mxfp4", "oss-lora", logits(PeftModel.from_pretrained(model, f"{D}/oss-lora").merge_and_unload()))

try:
    import bitsandbytes
    from transformers import BitsAndBytesConfig
except ImportError:
    sys.exit("bitsandbytes is not installed")
for name, quantization in ("nf4", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)), ("int8", BitsAndBytesConfig(load_in_8bit=True)):
    AutoModelForCausalLM.from_pretrained(f"{D}/llama", quantization_config=quantization, dtype=torch.bfloat16).save_pretrained(f"{D}/{name}")
    model = AutoModelForCausalLM.from_pretrained(f"{D}/{name}")
    model = model.dequantize().float()
    model.config.__dict__.pop("quantization_config", None)
    model.is_quantized = False
    check(name, "llama-lora", logits(PeftModel.from_pretrained(model, f"{D}/llama-lora").merge_and_unload()))
