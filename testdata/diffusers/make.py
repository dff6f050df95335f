"""Make the adapters of this directory with diffusers and PEFT, and the scales that they load with.

    pip install diffusers==0.36.0 peft==0.21.2 transformers==5.24.0 torch==2.15.0
    python make.py

Each case is a file of weights as diffusers saves it. CASE.json has, for every module with factors,
the rank and the scale that the library itself uses after it has loaded the file.
"""

import json
import os

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import CLIPTextConfig, CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__))


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4)


def text_encoder():
    torch.manual_seed(1)
    return CLIPTextModel(CLIPTextConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=20, max_position_embeddings=8, projection_dim=8))


def layers(model):
    return {n: [m.r["default"], m.scaling["default"]]
            for n, m in model.named_modules() if isinstance(m, LoraLayer)}


def save(name, configs):
    """configs: component -> LoraConfig."""
    models = {"unet": unet(), "text_encoder": text_encoder()}
    arguments = {}
    for component, config in configs.items():
        model = models[component]
        inject_adapter_in_model(config, model)
        for k, p in model.named_parameters():
            if "lora_" in k:
                torch.nn.init.normal_(p)
        arguments[component + "_lora_layers"] = get_peft_model_state_dict(model)
        arguments[component + "_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    directory = os.path.join(HERE, name)
    StableDiffusionPipeline.save_lora_weights(directory, **arguments)
    path = os.path.join(directory, "pytorch_lora_weights.safetensors")

    # Load it into new models, as the pipeline does, and ask them.
    state, metadata = StableDiffusionPipeline.lora_state_dict(path, return_lora_metadata=True)[::2]
    fresh = {"unet": unet(), "text_encoder": text_encoder()}
    truth = {}
    for component in configs:
        if component == "unet":
            StableDiffusionPipeline.load_lora_into_unet(
                state, None, fresh[component], adapter_name="default", metadata=metadata)
        else:  # its load_adapter asks for a newer PEFT, and makes this configuration
            fields = {k.removeprefix(component + "."): v for k, v in metadata.items()
                      if k.startswith(component + ".")}
            inject_adapter_in_model(LoraConfig(**fields), fresh[component])
        for module, scale in layers(fresh[component]).items():
            truth[component + "." + module] = scale
    with open(os.path.join(directory, "truth.json"), "w") as f:
        json.dump(truth, f, indent=1, sort_keys=True)
        f.write("\n")


def alone(name, config):
    """A file that a model saves by itself, without a component in its names."""
    model = unet()
    model.add_adapter(config)
    directory = os.path.join(HERE, name)
    model.save_lora_adapter(directory)
    with open(os.path.join(directory, "truth.json"), "w") as f:
        json.dump(layers(model), f, indent=1, sort_keys=True)
        f.write("\n")


def pickled(name, config):
    """A pickle in the spelling of 2023, as the training scripts of diffusers convert it."""
    models = {"unet": unet(), "text_encoder": text_encoder()}
    arguments = {}
    for component, model in models.items():
        inject_adapter_in_model(config, model)
        arguments[component + "_lora_layers"] = convert_state_dict_to_diffusers(
            get_peft_model_state_dict(model))
    directory = os.path.join(HERE, name)
    StableDiffusionPipeline.save_lora_weights(directory, safe_serialization=False, **arguments)
    fresh = unet()
    StableDiffusionPipeline.load_lora_into_unet(
        torch.load(os.path.join(directory, "pytorch_lora_weights.bin")), None, fresh,
        adapter_name="default")
    truth = {"unet." + module: scale for module, scale in layers(fresh).items()}
    with open(os.path.join(directory, "truth.json"), "w") as f:
        json.dump(truth, f, indent=1, sort_keys=True)
        f.write("\n")


if __name__ == "__main__":
    save("patterns", {
        "unet": LoraConfig(
            r=2, lora_alpha=3, target_modules=["to_q", "to_out.0", "conv1", "proj_in"],
            rank_pattern={"attn2.to_q": 4}, alpha_pattern={"mid_block.*to_q": 1, "conv1": 5},
            init_lora_weights="gaussian"),
        "text_encoder": LoraConfig(
            r=3, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "out_proj", "fc1"])})
    save("dora", {
        "unet": LoraConfig(r=2, lora_alpha=1, use_dora=True, target_modules=["to_k"]),
        "text_encoder": LoraConfig(r=2, lora_alpha=8, lora_bias=True, target_modules=["v_proj"])})
    alone("alone", LoraConfig(r=2, lora_alpha=7, target_modules=["to_v"]))
    pickled("pickled", LoraConfig(r=2, lora_alpha=2, target_modules=["to_out.0", "q_proj"]))
