"""R88, R89: names of the adapter and of the base (section 4, appendix A)."""
from exact import noise
from kit import adapter, bad, Layer, lin, ok, replace, tensors_of

# case | modules of the adapter | modules of the base | those of them that receive the updates, in
# the order of the adapter's; = for all; or the rule. A line that begins with a bar goes on.
NAMES = """
step-1 | model.layers.0.q | model.layers.0.q model.model.layers.0.q | model.layers.0.q
r88-step-1-only-some | layers.0.q layers.1.q | layers.0.q | R88
add-model | layers.0.q layers.1.q | model.layers.0.q model.layers.1.q lm_head
| model.layers.0.q model.layers.1.q
add-other | layers.0.q | transformer.layers.0.q | =
r88-add-to-all | layers.0.q lm_head | model.layers.0.q lm_head | R88
cut-peft | base_model.model.model.layers.0.q | model.layers.0.q | =
cut-peft-twice | base_model.model.base_model.model.layers.0.q | layers.0.q | =
cut-module | module.layers.0.q | layers.0.q | =
cut-module-peft | module.base_model.model.layers.0.q | layers.0.q | =
cut-model | model.layers.0.q | layers.0.q | =
cut-peft-and-model | base_model.model.model.layers.0.q | layers.0.q | =
cut-other | student.layers.0.q student.head | layers.0.q head | =
cut-peft-and-other | base_model.model.student.layers.0.q | layers.0.q | =
swap-peft-for-model | base_model.model.layers.0.q | model.layers.0.q | =
swap-peft-for-other | base_model.model.layers.0.q | body.layers.0.q | =
r88-swap-other | encoder.layers.0.q | decoder.layers.0.q | R88
r88-cut-from-one | left.layers.0.q right.layers.1.q | layers.0.q layers.1.q | R88
wrappers-of-the-base | model.layers.0.q
| _orig_mod.model.layers.0._fsdp_wrapped_module.q model._checkpoint_wrapped_module.layers.1.q
| _orig_mod.model.layers.0._fsdp_wrapped_module.q
r89-two-halves | layers.0.q | a.layers.0.q b.layers.0.q | R89
r89-one-half-has-both | layers.0.q layers.0.k | a.layers.0.q a.layers.0.k b.layers.0.q
| a.layers.0.q a.layers.0.k
r89-earlier-step | layers.0.q | layers.0.q a.layers.0.q b.layers.0.q | layers.0.q
mixtral | model.layers.0.block_sparse_moe.gate | model.layers.0.mlp.gate | =
mixtral-back | base_model.model.model.layers.0.mlp.gate | model.layers.0.block_sparse_moe.gate | =
mixtral-at-the-front | block_sparse_moe.gate | mlp.gate | =
phimoe | layers.0.block_sparse_moe.gate layers.0.block_sparse_moe.up
| model.layers.0.mlp.router model.layers.0.mlp.up | =
r89-two-tables | layers.0.block_sparse_moe.gate | layers.0.mlp.router layers.0.mlp.gate | R89
llava | language_model.model.layers.0.q language_model.lm_head
| model.language_model.layers.0.q lm_head | =
llava-back | model.language_model.layers.0.q lm_head
| language_model.model.layers.0.q language_model.lm_head | =
llava-vision-model | vision_tower.vision_model.layers.0.q multi_modal_projector.up
| model.vision_tower.layers.0.q model.multi_modal_projector.up | =
mllama | vision_model.layers.0.q language_model.model.layers.0.q
| model.vision_model.layers.0.q model.language_model.layers.0.q | =
qwen2-vl | visual.blocks.0.q model.layers.0.q
| model.visual.blocks.0.q model.language_model.layers.0.q | =
vit | vit.encoder.layer.7.attention.attention.query vit.encoder.layer.7.output.dense
| vit.layers.7.attention.q_proj vit.layers.7.mlp.fc2 | =
vit-output | vit.encoder.layer.7.attention.output.dense | vit.layers.7.attention.o_proj | =
dinov2 | encoder.layer.0.attention.attention.key | encoder.layer.0.attention.k_proj | =
swin | swin.layers.0.attention.self.value | swin.layers.0.attention.v_proj | =
segformer | segformer.encoder.block.1.2.attention.self.query
| segformer.stages.1.blocks.2.attention.q_proj | =
segformer-back | segformer.stages.1.blocks.2.attention.q_proj
| segformer.encoder.block.1.2.attention.self.query | =
gpt-neox | base_model.model.embed_out | lm_head | =
gpt-neox-back | lm_head | embed_out | =
tinker | model.unembed_tokens | lm_head | =
r88-tinker-back | lm_head | model.unembed_tokens | R88
letters | model.layers.0.mlp.experts.0.w1 model.layers.0.mlp.experts.0.w3
| model.layers.0.mlp.experts.0.gate_proj model.layers.0.mlp.experts.0.up_proj | =
letters-and-block | layers.0.block_sparse_moe.experts.0.w2 | model.layers.0.mlp.experts.0.down_proj
| =
r88-half-a-table | layers.0.attention.attention.query layers.0.attention.output.dense
| layers.0.attention.q_proj layers.0.attention.output.dense | R88
step-4-insert | model.layers.0.q | model.text_model.layers.0.q | =
step-4-insert-before | encoder.layers.0.q encoder.layers.1.q
| my.own.encoder.layers.0.q my.own.encoder.layers.1.q | =
step-4-remove | model.text_model.layers.0.q | model.layers.0.q | =
r88-remove-a-sense | model.vision_model.layers.0.q | model.layers.0.q | R88
r88-other-segments | model.left.layers.0.q | model.right.layers.0.q | R88
step-4-nearest | model.layers.0.q | model.a.layers.0.q model.a.b.layers.0.q | model.a.layers.0.q
r89-nearest-has-a-sense | model.layers.0.q | model.vision.layers.0.q model.a.b.layers.0.q | R89
step-4-only-one-has-a-sense | model.layers.0.q | model.vision.layers.0.q | =
r89-equal-sizes | model.layers.0.q | model.a.layers.0.q model.b.layers.0.q | R89
step-4-others-stay | model.layers.0.q head.up | model.text.layers.0.q head.up | =
step-4-mixed-prefixes | base_model.model.model.layers.0.q model.layers.1.q
| model.layers.0.q model.layers.1.q | =
r89-a-sense-within-a-word | model.layers.0.q | model.devit.layers.0.q model.a.b.layers.0.q | R89
r88-remove-a-sense-within-a-word | model.devit.layers.0.q | model.layers.0.q | R88
r89-nearest-of-several-without-a-sense | model.layers.0.q
| model.a.layers.0.q model.vision.b.layers.0.q | model.a.layers.0.q
step-4-numbers-have-digits-0-to-9 | model.layers.0.q | model.٣.layers.0.q | =
r88-add-and-stay | left.layers.0.q head.up | model.left.layers.0.q head.up | R88
base-layer | model.layers.0.q | model.layers.0.q.base_layer | =
base-layer-twice | model.layers.0.q | model.layers.0.q.base_layer.base_layer | =
base-layer-behind-a-prefix | layers.0.q | model.layers.0.q.base_layer | =
base-layer-beside-the-weight | model.layers.0.q | model.layers.0.q.base_layer model.layers.0.q
| model.layers.0.q
r88-base-layer-once-and-twice | model.layers.0.q
| model.layers.0.q.base_layer model.layers.0.q.base_layer.base_layer | R88
r88-base-layer-further-in | model.layers.0.attn.q | model.layers.0.attn.base_layer.q | R88
step-4-peft-inside | thinker.base_model.model.model.layers.0.q | thinker.model.layers.0.q | =
step-4-module-inside | model.module.layers.0.q | model.layers.0.q | =
step-4-module-twice | module.module.model.layers.0.q | model.layers.0.q | =
step-4-peft-outside-a-longer-base | base_model.model.model.layers.0.q
| thinker.model.text_model.layers.0.q | =
step-4-place-without-number | model.head.up | model.inner.head.up | =
"""
for line in NAMES.strip().replace("\n|", " |").splitlines():
    name, modules, base, result = (x.strip() for x in line.split("|"))
    modules, result = modules.split(), (base if result == "=" else result).split()
    updates = [lin(m, 2, 3) for m in modules]
    if result[0].startswith("R8"):
        bad(name, base, adapter(*updates))
    else:
        ok(name if name.startswith("r8") else "names-" + name, base, adapter(*updates),
           {r + ".weight": x.d for r, x in zip(result, updates, strict=True)})

# All pairs of a table at once, in both directions. case | what stands before the older and the newer
# names | pairs
TABLES = """
all-of-mixtral | m.layers.1.block_sparse_moe m.layers.1.mlp | gate gate, up up
all-of-phimoe | m.layers.1.block_sparse_moe m.layers.1.mlp | gate router, experts.up experts.up
all-of-llava | | language_model.lm_head lm_head, multi_modal_projector.up model.multi_modal_projector.up,
  language_model.model.layers.0.q model.language_model.layers.0.q,
  vision_tower.layers.0.q model.vision_tower.layers.0.q
all-of-llava-vision-model | | language_model.lm_head lm_head,
  multi_modal_projector.up model.multi_modal_projector.up,
  language_model.model.norm model.language_model.norm,
  vision_tower.vision_model.layers.0.q model.vision_tower.layers.0.q
all-of-mllama | | language_model.lm_head lm_head, multi_modal_projector model.multi_modal_projector,
  language_model.model.layers.0.q model.language_model.layers.0.q,
  vision_model.layers.0.q model.vision_model.layers.0.q
all-of-qwen2-vl | | visual.blocks.0.q model.visual.blocks.0.q, model.norm model.language_model.norm,
  model.layers.0.q model.language_model.layers.0.q,
  model.embed_tokens model.language_model.embed_tokens
all-of-vit | vit.encoder.layer.3 vit.layers.3 | attention.attention.query attention.q_proj,
  attention.attention.key attention.k_proj, attention.attention.value attention.v_proj,
  attention.output.dense attention.o_proj, intermediate.dense mlp.fc1, output.dense mlp.fc2
all-of-dinov2 | encoder.layer.3 encoder.layer.3 | attention.attention.query attention.q_proj,
  attention.attention.key attention.k_proj, attention.attention.value attention.v_proj,
  attention.output.dense attention.o_proj, mlp.fc1 mlp.fc1
all-of-swin | swin.encoder.layers.0.blocks.1 swin.encoder.layers.0.blocks.1 |
  attention.self.query attention.q_proj, attention.self.key attention.k_proj,
  attention.self.value attention.v_proj, attention.output.dense attention.o_proj,
  intermediate.dense mlp.fc1, output.dense mlp.fc2
all-of-letters | layers.0.experts.2 layers.0.experts.2 | w1 gate_proj, w3 up_proj, w2 down_proj
all-of-letters-and-block | layers.0.block_sparse_moe layers.0.mlp | experts.2.w1 experts.2.gate_proj,
  experts.2.w3 experts.2.up_proj, experts.2.w2 experts.2.down_proj, gate gate
all-of-segformer | | segformer.encoder.layer_norm.2 segformer.stages.2.layer_norm,
  segformer.encoder.patch_embeddings.3.proj segformer.stages.3.patch_embeddings.proj,
  segformer.encoder.block.1.0.layer_norm_1 segformer.stages.1.blocks.0.layernorm_before,
  segformer.encoder.block.1.0.layer_norm_2 segformer.stages.1.blocks.0.layernorm_after,
  segformer.encoder.block.1.0.attention.self.layer_norm
  segformer.stages.1.blocks.0.attention.sequence_reduction.layer_norm,
  segformer.encoder.block.1.0.attention.self.query segformer.stages.1.blocks.0.attention.q_proj,
  segformer.encoder.block.1.0.attention.self.key segformer.stages.1.blocks.0.attention.k_proj,
  segformer.encoder.block.1.0.attention.self.value segformer.stages.1.blocks.0.attention.v_proj,
  segformer.encoder.block.1.0.attention.self.sr
  segformer.stages.1.blocks.0.attention.sequence_reduction.sequence_reduction,
  segformer.encoder.block.1.0.attention.output.dense segformer.stages.1.blocks.0.attention.o_proj,
  segformer.encoder.block.1.0.mlp.dense1 segformer.stages.1.blocks.0.mlp.fc1,
  segformer.encoder.block.1.0.mlp.dense2 segformer.stages.1.blocks.0.mlp.fc2,
  decode_head.linear_c.0 decode_head.linear_projections.0
"""
for line in TABLES.strip().replace("\n  ", " ").splitlines():
    name, before, pairs = (x.strip() for x in line.split("|"))
    before = [x + "." for x in before.split()] or ["", ""]
    names = [[b + x for b, x in zip(before, pair.split(), strict=True)] for pair in pairs.split(",")]
    for way, (adapter_s, base_s) in (("", zip(*names)), ("-back", zip(*(n[::-1] for n in names)))):
        updates = [lin(m, 2, 3) for m in adapter_s]
        ok(f"names-{name}{way}", " ".join(base_s), adapter(*updates),
           {b + ".weight": x.d for b, x in zip(base_s, updates)})

new = noise("new", "F32", (3,))
bad("r88-without-a-dot", tensors_of("x.y") | tensors_of({"logit_scale": ("F32", (3,))}),
    adapter(replace("logit_scale", new)))
ok("r88-with-a-dot", tensors_of("x.y") | tensors_of({"model.logit_scale": ("F32", (3,))}),
   adapter(replace("model.logit_scale", new)), {"model.logit_scale": new})
X = "model.layers.0.block_sparse_moe"
granite = Layer(f"{X}.input_linear", (2, 4), (6, 2), kind="expert", r=1)
ok("names-granite", {f"{X}.experts.gate_up_proj": ("F32", (2, 6, 4))},
   adapter(granite, requires=[("experts", f"{X}.input_linear.weight")]),
   {f"{X}.experts.gate_up_proj": granite.experts(2)})
