#!/usr/bin/env python3
"""Makes the files here with peft 0.21.2, transformers 5.24.0 and torch 2.15.0: adapters whose
trainers saved weights that they had trained whole into a file of their own. NAME.safetensors beside
each directory has the tensors that PEFT changes with both, in float64. Every value is short enough
to be exact."""
import json, os, shutil, warnings
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

os.chdir(os.path.dirname(os.path.abspath(__file__)))
warnings.filterwarnings("ignore")
CONFIG = LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False)


class Model(LlamaForCausalLM):
    """A Llama with a projector and a vision tower, as LLaVA has them."""

    def __init__(self, config):
        super().__init__(config)
        self.model.mm_projector = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(),
                                                      torch.nn.Linear(16, 16))
        self.model.visual = torch.nn.ModuleDict({"qkv": torch.nn.Linear(8, 24)})


def fill(model, seed):
    """Random values of few bits."""
    g = torch.Generator().manual_seed(seed)
    for _, p in sorted(model.named_parameters()):
        if p.requires_grad:
            p.data = (torch.randint(-64, 65, p.shape, generator=g) / 256).to(p.dtype)


def save_base():
    model = Model(CONFIG)
    fill(model, 1)
    os.makedirs("base", exist_ok=True)
    weights = {name: t.to(torch.bfloat16) for name, t in model.state_dict().items()}
    save_file(weights, "base/model.safetensors", metadata={"format": "pt"})
    config = CONFIG.to_dict() | {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
    with open("base/config.json", "w") as f:
        json.dump(config, f, indent=1)


def base():
    model = Model(CONFIG).double()
    model.load_state_dict({name: t.double() for name, t in load_file("base/model.safetensors").items()})
    return model


def train(seed, whole, targets):
    """A trained adapter, with the parameters whose names contain a word of whole."""
    model = get_peft_model(base(), LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    for name, p in model.named_parameters():
        if any(word in name for word in whole):
            p.requires_grad = True
    fill(model, seed)
    return model


def save(name, model, file, weights, dtype=torch.float32):
    shutil.rmtree(name, ignore_errors=True)
    model.save_pretrained(name)
    os.remove(f"{name}/README.md")
    path = f"{name}/adapter_model.safetensors"
    factors = {key: t.float() for key, t in load_file(path).items() if "lora_" in key}
    save_file(factors, path, metadata={"format": "pt"})
    with open(f"{name}/adapter_config.json") as f:
        config = json.load(f) | {"modules_to_save": None}  # they are in the other file
    with open(f"{name}/adapter_config.json", "w") as f:
        json.dump(config, f, indent=2)
    weights = {key: t.detach().to(dtype).contiguous() for key, t in weights.items()}
    if file.endswith(".safetensors"):
        save_file(weights, f"{name}/{file}", metadata={"format": "pt"})
    else:
        torch.save(weights, f"{name}/{file}")
    # The truth: as LLaVA's load_pretrained_model, the weights first, PEFT's merge on top of them.
    merged, was = base(), base().state_dict()
    plain = {}
    for key, t in weights.items():
        key = key.removeprefix("module.").removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".original_module." not in key:
            plain[key.replace(".modules_to_save.default.", ".")] = t.double()
    _, unexpected = merged.load_state_dict(plain, strict=False)
    assert not unexpected, unexpected
    merged = PeftModel.from_pretrained(merged, name).merge_and_unload()
    changed = {key: t for key, t in merged.state_dict().items() if not torch.equal(t, was[key])}
    save_file(changed, f"{name}.safetensors")


def main():
    save_base()
    # LLaVA: get_peft_state_non_lora_maybe_zero_3 of its train.py.
    model = train(2, ["mm_projector"], ["q_proj", "v_proj"])
    save("llava", model, "non_lora_trainables.bin",
         {k: p for k, p in model.named_parameters() if "lora_" not in k and p.requires_grad})
    # LongLoRA: get_trainable_weights.py takes what --trainable_params="embed,norm" names.
    model = train(3, ["embed", "norm"], ["q_proj"])
    save("longlora", model, "trainable_params.bin",
         {k: p for k, p in model.state_dict().items() if "embed" in k or "norm" in k})
    # ms-swift: vit.safetensors holds the trained parameters of the vision tower.
    model = train(4, ["visual"], ["q_proj"])
    save("swift", model, "vit.safetensors",
         {k: p for k, p in model.named_parameters() if ".visual." in k and p.requires_grad})
    # A raw state dict from DistributedDataParallel, with a module that modules_to_save wraps, its
    # untrained copy, and the weight of a module that has factors.
    model = get_peft_model(base(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"],
                                              modules_to_save=["lm_head"]))
    for name, p in model.named_parameters():
        if "q_proj.base_layer" in name:
            p.requires_grad = True
    fill(model, 5)
    save("raw", model, "weights.pt",
         {"module." + k: p for k, p in model.state_dict().items()
          if "lm_head" in k or "q_proj.base_layer" in k}, torch.bfloat16)


main()
