"""Shows that merge --base-as nf4 merges into the weights that QLoRA's training sees: those that
transformers 5.24.0 quantises with bitsandbytes 0.50.2 on a CPU, in a tiny Llama. torch 2.15.0, peft 0.21.2.

    python check_base_as.py /path/to/loratool
"""
import os, subprocess, sys, tempfile
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
import bitsandbytes as bnb, torch, transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
LORATOOL, D = sys.argv[1], tempfile.mkdtemp()
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=72, intermediate_size=136, num_hidden_layers=2, num_attention_heads=2,
                                     num_key_value_heads=1, vocab_size=64, tie_word_embeddings=False)).to(torch.bfloat16)
model.save_pretrained(f"{D}/base")
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
seen = AutoModelForCausalLM.from_pretrained(f"{D}/base", quantization_config=config, dtype=torch.bfloat16, device_map="cpu")
trained = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
for n, x in trained.named_parameters():
    if "lora_" in n:
        x.data = torch.randn_like(x) * .05
trained.save_pretrained(f"{D}/adapter")
subprocess.run([LORATOOL, "merge", f"{D}/base", f"{D}/adapter", "-o", f"{D}/out", "--base-as", "nf4"], check=True)
out, base, a = (load_file(f"{D}/{d}") for d in ("out/model.safetensors", "base/model.safetensors", "adapter/adapter_model.safetensors"))
quantised, changed, wrong = set(), 0, []
for name, m in seen.named_modules():
    if isinstance(m, bnb.nn.Linear4bit):
        name += ".weight"
        quantised.add(name)
        s = m.weight.quant_state
        state = bnb.functional.QuantState(absmax=s.absmax, shape=s.shape, code=s.code, blocksize=s.blocksize, quant_type="nf4", dtype=torch.float32)
        q = bnb.functional.dequantize_4bit(m.weight.data, quant_state=state).double()
        module = "base_model.model." + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in a:
            changed += 1
            q = q + 2 * a[f"{module}.lora_B.weight"].double() @ a[f"{module}.lora_A.weight"].double()
        if not torch.equal(q.float().to(torch.bfloat16), out[name]) and (n := (q.to(torch.bfloat16) != out[name]).sum().item()):
            wrong.append((name, n, q.numel()))
others = [n for n in base if n not in quantised]
print(f"{len(quantised)} weights quantised, {changed} of them adapted; elements that torch, which rounds to float32 first, rounds otherwise: {wrong}")
print("all other tensors as in the base:", all(torch.equal(base[n], out[n]) for n in others), others)
