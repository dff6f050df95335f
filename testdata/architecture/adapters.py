"""Compares the tables with what diffusers makes of whole adapters (lora_conversion_utils.py)."""

import torch
from diffusers.loaders import lora_conversion_utils as c


def sdxl(state, model):
    state = c._maybe_map_sgm_blocks_to_diffusers(state, model.config)
    state, _ = c._convert_non_diffusers_lora_to_diffusers(state)
    renames = [(".processor.", "."), ("_lora.", "."), (".to_out.up", ".to_out.0.up"),
               (".lora.", "."), (".up.weight", ".lora_B.weight")]
    for old, new in renames:  # names of the first generation of diffusers
        state = {k.replace(old, new): v for k, v in state.items()}
    return state


def plain(convert):
    return lambda state, model: convert(state)


FLAT, DOTTED = "lora_unet_", "transformer."

# (table, model, beginning of the names, whether the converter knows a native module, converter)
ADAPTERS = [
    ("flux", "Flux.1 dev", FLAT, lambda n: True,
     plain(c._convert_kohya_flux_lora_to_diffusers)),
    ("sdxl", "SDXL 1.0", FLAT, lambda n: any(w in n for w in ("attn", ".ff.", ".proj_")), sdxl),
    ("wan", "Wan 2.1 T2V 1.3B", FLAT, lambda n: n.startswith("blocks."),
     plain(c._convert_musubi_wan_lora_to_diffusers)),
    ("wan", "Wan 2.1 I2V 14B", FLAT, lambda n: n.startswith("blocks."),
     plain(c._convert_musubi_wan_lora_to_diffusers)),
    ("qwen_image", "Qwen-Image", FLAT, lambda n: True,
     plain(c._convert_non_diffusers_qwen_lora_to_diffusers)),
    ("z_image", "Z-Image", FLAT, lambda n: n.startswith(("layers.", "noise_", "context_")),
     plain(c._convert_non_diffusers_z_image_lora_to_diffusers)),
    # This converter divides and exchanges halves of A, too, in the two modules left out here.
    ("hunyuan_video", "HunyuanVideo", DOTTED,
     lambda n: "self_attn_qkv" not in n and n != "final_layer.adaLN_modulation.1",
     plain(c._convert_hunyuan_video_lora_to_diffusers)),
]


def check(table, model, prefix, knows, convert, instance, modules, tags):
    """modules lists the native modules with their parts, tags the numbers of the rows."""
    state, want = {}, {}
    for module, parts in modules:
        if not knows(module):
            continue
        rows = {}
        for name, share, of, _ in parts:
            value = tags[f"{name}.weight"].reshape(-1, 1).double()
            want[name] = value
            rows[name, share] = value.chunk(of)[share - 1]
        up, down = torch.cat(list(rows.values())), torch.ones(1, 1, dtype=torch.double)
        if prefix == FLAT:
            name = FLAT + module.replace(".", "_")
            state[f"{name}.lora_up.weight"], state[f"{name}.lora_down.weight"] = up, down
            state[f"{name}.alpha"] = torch.tensor(1.0)
        else:
            state[f"{prefix}{module}.lora_B.weight"] = up
            state[f"{prefix}{module}.lora_A.weight"] = down
    got = {}
    for key, value in convert(state, instance).items():
        name = key.removeprefix("transformer.").removeprefix("unet.")
        if name.endswith(".lora_B.weight"):
            got[name.removesuffix(".lora_B.weight")] = value
    assert got.keys() == want.keys(), f"{table}: {sorted(got.keys() ^ want.keys())[:6]}"
    for name, value in want.items():
        assert torch.equal(got[name], value), f"{table}: adapter of {name}: other rows"
    return f"{table:14} {model:24} {len(want):5} modules of an adapter, by converter"
