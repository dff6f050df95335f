"""R130, R131: modules of image and video models (spec/NAMES.md)."""
from exact import M, noise, rescaled
from kit import adapter, bad, lin, ok, tensors_of

H = 2  # the width of Flux here
NATIVE = "model.diffusion_model."
FLUX = tensors_of({
    NATIVE + "double_blocks.0.img_attn.qkv.weight": ("BF16", (3 * H, H)),
    NATIVE + "double_blocks.0.img_attn.qkv.bias": ("F32", (3 * H,)),
    NATIVE + "double_blocks.0.img_attn.proj.weight": ("F32", (H, H)),
    NATIVE + "single_blocks.0.linear1.weight": ("F16", (7 * H, H)),
    NATIVE + "single_blocks.0.linear2.weight": ("F32", (H, 5 * H)),
    NATIVE + "final_layer.adaLN_modulation.1.weight": ("F32", (2 * H, H)),
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": ("F32", (8, 4)),
})
SPLIT = tensors_of({
    **{f"transformer.transformer_blocks.0.attn.to_{x}.weight": ("F32", (H, H)) for x in "qkv"},
    "transformer.norm_out.linear.weight": ("F32", (2 * H, H)),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight": ("F32", (8, 4)),
})
OTHER = tensors_of({"blocks.0.attn.wk.weight": ("F32", (4, 6)), "a.b_c.weight": ("F32", (4, 6)),
                    "a_b.c.weight": ("F32", (6, 4)), "x.y_z.weight": ("F32", (4, 6)),
                    "x_y.z.weight": ("F32", (4, 6))})

# A whole weight under another name: module of the adapter, size, weight of the base.
for name, base, module, m, n, weight in (
        ("flat", FLUX, "lora_unet_double_blocks_0_img_attn_qkv", 6, 2, "double_blocks.0.img_attn.qkv"),
        ("flat-doubled", FLUX, "lora_unet__single_blocks_0_linear2", 2, 10, "single_blocks.0.linear2"),
        ("comfyui", FLUX, "diffusion_model.single_blocks.0.linear1", 14, 2, "single_blocks.0.linear1"),
        ("table", FLUX, "transformer.transformer_blocks.0.attn.to_out.0", 2, 2, "double_blocks.0.img_attn.proj"),
        ("flat-table", FLUX, "lora_transformer_single_transformer_blocks_0_proj_out", 2, 10, "single_blocks.0.linear2")):
    x = lin(module, m, n)
    ok("r130-" + name, base, adapter(x), {f"{NATIVE}{weight}.weight": x.d})
for name, base, module, m, n, weight in (
        ("text-encoder", FLUX, "lora_te1_text_model_encoder_layers_0_mlp_fc1", 8, 4,
         "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"),
        ("another-number", SPLIT, "lora_te2_text_model_encoder_layers_0_mlp_fc1", 8, 4,
         "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("no-table", OTHER, "lora_unet_blocks_0_attn_wk", 4, 6, "blocks.0.attn.wk"),
        ("shape-decides", OTHER, "lora_unet_a_b_c", 4, 6, "a.b_c")):
    x = lin(module, m, n)
    ok("r130-" + name, base, adapter(x), {weight + ".weight": x.d})

# Some rows of a weight.
for name, module, m, weight, rows, first in (
        ("third", "transformer.transformer_blocks.0.attn.to_k", 2, "double_blocks.0.img_attn.qkv", 6, 2),
        ("square", "transformer.single_transformer_blocks.0.attn.to_v", 2, "single_blocks.0.linear1", 14, 4),
        ("rest", "transformer.single_transformer_blocks.0.proj_mlp", 8, "single_blocks.0.linear1", 14, 6)):
    x = lin(module, m, H)
    ok("r130-" + name, FLUX, adapter(x), {f"{NATIVE}{weight}.weight": x.d.at((rows, H), first)})
x = lin("transformer.norm_out.linear", 4, H)  # scale and shift change places
ok("r130-halves", FLUX, adapter(x),
   {NATIVE + "final_layer.adaLN_modulation.1.weight": x.d[0:2].at((4, H), 2) + x.d[2:4].at((4, H))})
x = lin("lora_unet_final_layer_adaLN_modulation_1", 4, H)
ok("r130-halves-back", SPLIT, adapter(x),
   {"transformer.norm_out.linear.weight": x.d[0:2].at((4, H), 2) + x.d[2:4].at((4, H))})
x = lin("lora_unet_double_blocks_0_img_attn_qkv", 6, H)
ok("r130-fused-on-parts", SPLIT, adapter(x),
   {f"transformer.transformer_blocks.0.attn.to_{w}.weight": x.d[2 * i:2 * i + 2] for i, w in enumerate("qkv")})

# With a bias: all of it, or its rows.
K = "transformer.transformer_blocks.0.attn.to_k"
x = lin(K, 2, H, bias=noise("kb", "F32", (2,)))
b = M([[v] for v in x.roles["bias"].matrix().flat()])
ok("r130-bias-of-a-third", FLUX, adapter(x, requires=[("lora-bias", K)]),
   {NATIVE + "double_blocks.0.img_attn.qkv.weight": x.d.at((6, H), 2),
    NATIVE + "double_blocks.0.img_attn.qkv.bias": (x.s * b).at((6, 1), 2)})
OUT = "transformer.transformer_blocks.0.attn.to_out.0"
bad("r130-no-bias", FLUX, adapter(lin(OUT, 2, H, bias=noise("ob", "F32", (2,))),
                                  requires=[("lora-bias", OUT)]))

# In no place, or in several.
TWO = tensors_of({"transformer.a.weight": ("F32", (2, 3)), "transformer_2.a.weight": ("F32", (2, 3))})
for name, base, module, m, n in (
        ("absent", OTHER, "lora_te_text_model_encoder_layers_0_mlp_fc1", 8, 4),
        ("absent-block", FLUX, "transformer.transformer_blocks.7.attn.to_k", 2, H),
        ("shape", OTHER, "lora_unet_blocks_0_attn_wk", 4, 5),
        ("shape-of-a-third", FLUX, K, 3, H),
        ("two-modules", OTHER, "lora_unet_x_y_z", 4, 6),
        ("two-denoisers", TWO, "lora_unet_a", 2, 3)):
    bad("r130-" + name, base, adapter(lin(module, m, n)))
both = (lin("transformer.single_transformer_blocks.0.proj_out", 2, 10), lin("text_encoder_2.x.y", 2, 3))
bad("r130-one-part", FLUX, adapter(*both))

# Magnitudes.
x = lin(OUT, 2, H, magnitude=noise("om", "F32", (2,)))
w = NATIVE + "double_blocks.0.img_attn.proj.weight"
ok("r131-whole", FLUX, adapter(x, requires=[("dora", OUT)]), {w: rescaled(FLUX[w], x.d, x.roles["magnitude"])})
bad("r131-third", FLUX, adapter(lin(K, 2, H, magnitude=noise("km", "F32", (2,))), requires=[("dora", K)]))
