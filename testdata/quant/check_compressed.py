"""As check_transformers.py, for the formats of compressed-tensors and for torchao: merges as a mixed output
and wholly decoded, loaded by transformers on a CPU, beside PEFT's merge into the library's own dequantised
weights in float32. transformers 5.24.0, compressed-tensors 0.20.1, torchao 0.18.0, peft 0.21.2, torch 2.15.0.

    python check_compressed.py /path/to/loratool
"""
import json, os, subprocess, sys, tempfile, warnings
warnings.filterwarnings("ignore")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
import torch, transformers
import compressed_tensors.compressors
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.quantization.utils.helpers import generate_gparam
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TorchAoConfig
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
LORATOOL, D = sys.argv[1], tempfile.mkdtemp()
X = torch.arange(1, 33).reshape(1, -1)


def logits(model):
    with torch.no_grad():
        return model.eval()(X).logits.float()


def check(base, want):
    for out, flags in ("mixed", []), ("whole", ["--dequantise"]), ("f32", ["--dequantise", "--out-dtype", "f32"]):
        subprocess.run([LORATOOL, "merge", f"{D}/{base}", f"{D}/lora", "-o", f"{D}/{base}-{out}", "--quiet", *flags], check=True)
        try:
            model = AutoModelForCausalLM.from_pretrained(f"{D}/{base}-{out}")
            got = logits(model)
        except Exception as e:
            print(f"{base:8s} {out:6s} does not load: {type(e).__name__}: {str(e)[:200]}")
            continue
        print(f"{base:8s} {out:6s} {str(model.dtype)[6:]:9s} largest difference of logits {(got - want).abs().max():.2g} of {want.abs().max():.3g}")


torch.manual_seed(0)
config = LlamaConfig(hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     vocab_size=128, max_position_embeddings=64, tie_word_embeddings=False)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(f"{D}/llama")
p = get_peft_model(LlamaForCausalLM.from_pretrained(f"{D}/llama"), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], layers_to_transform=[0]))
for n, x in p.named_parameters():
    if "lora_" in n:
        x.data = torch.randn_like(x) * .05
p.save_pretrained(f"{D}/lora")


def want(values):
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(values)
    return logits(PeftModel.from_pretrained(model, f"{D}/lora").merge_and_unload())


def compressed(name, format, **args):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    a, C = scheme.weights, BaseCompressor.get_value_from_registry(format)
    codes, values = {}, {}
    for k, w in load_file(f"{D}/llama/model.safetensors").items():
        if "layers" not in k or w.dim() != 2:
            codes[k], values[k] = w, w.float()
            continue
        g = w.reshape(w.shape[0], -1, a.group_size)
        whole = generate_gparam(w.min().float(), w.max().float()) if a.strategy == "tensor_group" else None
        s, z = calculate_qparams(g.amin(-1), g.amax(-1), a, global_scale=whole)
        state = {"weight": w, "weight_scale": s, "weight_zero_point": z}
        if whole is not None:
            state["weight_global_scale"] = whole
        c = C.compress(state, scheme)
        codes.update({k.removesuffix("weight") + n: t for n, t in c.items()})
        values[k] = C.decompress(dict(c), scheme)["weight"].float()
    os.makedirs(f"{D}/{name}")
    save_file({k: v.contiguous() for k, v in codes.items()}, f"{D}/{name}/model.safetensors", metadata={"format": "pt"})
    group = {**json.loads(scheme.model_dump_json()), "format": format}
    json.dump({**json.load(open(f"{D}/llama/config.json")), "quantization_config": {"quant_method": "compressed-tensors", "format": format,
        "quantization_status": "compressed", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}}, open(f"{D}/{name}/config.json", "w"), indent=1)
    check(name, want(values))


compressed("int4", "pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True)
# transformers 5.24.0 does not load packed zero points (size mismatch), neither of the base nor of the mixed output.
compressed("int4z", "pack-quantized", num_bits=4, type="int", strategy="group", group_size=64, symmetric=False)
compressed("int3", "pack-quantized", num_bits=3, type="int", strategy="group", group_size=128, symmetric=True)
compressed("nvfp4", "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True, scale_dtype="torch.float8_e4m3fn")
compressed("mxfp4", "mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32, symmetric=True, scale_dtype="torch.uint8")
from torchao.quantization import Int8WeightOnlyConfig
AutoModelForCausalLM.from_pretrained(f"{D}/llama", quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), dtype=torch.bfloat16).save_pretrained(f"{D}/torchao")
model = AutoModelForCausalLM.from_pretrained(f"{D}/torchao", dtype=torch.bfloat16)
check("torchao", want({k: (v.dequantize() if hasattr(v, "dequantize") else v).float() for k, v in model.state_dict().items()}))
