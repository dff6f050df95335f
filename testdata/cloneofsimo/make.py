"""Make the files of this directory.

    pip install --no-deps --target old diffusers==0.11.1
    pip install torch==2.15.0 transformers==5.24.0 accelerate
    python make.py old

unet.txt has the linear layers in every CrossAttention and GEGLU of the U-Net of Stable Diffusion, in
the order in which cloneofsimo's lora (2022) numbers them: for each such module of model.modules(),
those of its named_modules(). The classes are those of diffusers 0.11.1, of the same time, on the
meta device. text_encoder.pt is a list of factors, up and down in turn, of a text encoder with two
layers of width 4, as torch saves it. unet.pt is that of a U-Net with blocks of width 2, 4 and 8, and
without GEGLU, as the first releases have it.
"""

import os
import sys
import types

import torch

old = sys.argv[1]
package = types.ModuleType("diffusers")  # its own __init__ needs a transformers of that time
package.__path__, package.__version__ = [os.path.join(old, "diffusers")], "0.11.1"
sys.modules["diffusers"] = package
import huggingface_hub  # noqa: E402

if not hasattr(huggingface_hub, "HfFolder"):
    huggingface_hub.HfFolder = object
if not hasattr(huggingface_hub, "cached_download"):
    huggingface_hub.cached_download = None
from diffusers.models.unet_2d_condition import UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


def walk(model, classes):
    names = {id(m): n for n, m in model.named_modules()}
    for ancestor in model.modules():
        if type(ancestor).__name__ in classes:
            for _, m in ancestor.named_modules():
                if isinstance(m, torch.nn.Linear):
                    yield names[id(m)], m


def factors(model, classes, r):
    """up and down in turn; the first value of each is its number."""
    tensors = []
    for _, m in walk(model, classes):
        for shape in ((m.out_features, r), (r, m.in_features)):
            t = torch.zeros(shape, dtype=torch.float16)
            t[0, 0] = len(tensors)
            tensors.append(t)
    return tensors


if __name__ == "__main__":
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        small = UNet2DConditionModel(
            cross_attention_dim=6, block_out_channels=(2, 4, 8, 8), norm_num_groups=1,
            attention_head_dim=1)
        clip = CLIPTextModel(CLIPTextConfig(
            hidden_size=4, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8))
    with open(os.path.join(HERE, "unet.txt"), "w") as f:
        for name, _ in walk(unet, {"CrossAttention", "Attention", "GEGLU"}):
            f.write(name + "\n")
    torch.save(factors(clip, {"CLIPAttention"}, 1), os.path.join(HERE, "text_encoder.pt"))
    torch.save(factors(small, {"CrossAttention"}, 1), os.path.join(HERE, "unet.pt"))
