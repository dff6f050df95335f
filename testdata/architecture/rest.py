"""The parameters that the tables leave out, native = diffusers, and how diffusers converts."""

import pathlib

from diffusers.loaders import single_file_utils as s

import table

REST = pathlib.Path(__file__).parent.parent.parent / "internal" / "architecture" / "rest"

# A bare parameter that one side has transposed: no rows of the one are rows of the other.
TRANSPOSED = {"open_clip": [("text_projection", "text_projection.weight")]}


def rest(name):
    """Returns the pairs of parameters that a table leaves out."""
    rows = table.read(table.TABLES / f"{name}.txt", REST / f"{name}.txt")
    return [(r.native, r.parts[0][0]) for r in rows] + TRANSPOSED.get(name, [])


class OpenCLIP:
    """Stands for the model in convert_open_clip_checkpoint, which reads the size if it must."""

    def __init__(self, hidden):
        self.config = type("Config", (), {"hidden_size": hidden})


def unet(state, model):
    state = {s.LDM_UNET_KEY + k: v for k, v in state.items()}
    return s.convert_ldm_unet_checkpoint(state, model.config)


def open_clip(state, model):
    prefix = "conditioner.embedders.1.model."
    state = {prefix + k: v for k, v in state.items()}
    return s.convert_open_clip_checkpoint(OpenCLIP(model.config.hidden_size), state, prefix)


def plain(convert):
    return lambda state, model: convert(state)


# Tables without a converter have one namespace, or two classes that show both (CLIP).
CONVERT = {
    "sd1": unet,
    "sdxl": unet,
    "sd3": plain(s.convert_sd3_transformer_checkpoint_to_diffusers),
    "flux": plain(s.convert_flux_transformer_checkpoint_to_diffusers),
    "wan": plain(s.convert_wan_transformer_to_diffusers),
    "hunyuan_video": plain(s.convert_hunyuan_video_transformer_to_diffusers),
    "z_image": plain(s.convert_z_image_transformer_checkpoint_to_diffusers),
    "open_clip": open_clip,
}
