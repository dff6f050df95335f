"""The cases. base: the files of the folder; a shape stands for F32 numbers. layers: (m, n) of linear
layers of rank 2, with "bias" behind them if lora_B has one. saved: tensors beside the layers, or
factors that are no linear layer's. refused: the rule of spec/APPLY.md."""

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
WEIGHTS = "model.safetensors"

def case(name, comment, base, **rest):
    if not any(f.endswith(".safetensors") for f in base): base = {WEIGHTS: base}
    CASES.append({"name": name, "comment": comment, "base": base, **rest})

CASES = []

# Section 2: the files of a base

case("files-others", "Other safetensors files beside model.safetensors are no part of the base.",
     {WEIGHTS: {"q.weight": [4, 6]}, "other.safetensors": {"q.weight": [6, 6]}},
     layers={"q": (4, 6)})
case("files-named", "A file that is named is the base, with the config.json beside it.",
     {WEIGHTS: {"c_attn.weight": [5, 6]}, "other.safetensors": {"h.0.c_attn.weight": [6, 6]},
      "config.json": {"model_type": "gpt2"}},
     file="other.safetensors", layers={"h.0.c_attn": (6, 6)})
case("files-shards", "The index names the files; a tensor of a shard that it leaves out counts.",
     {"a.safetensors": {"h.0.q.weight": [4, 6]}, "b.safetensors": {"h.1.q.weight": [4, 6]},
      "c.safetensors": {"h.0.q.weight": [1, 1]},
      WEIGHTS + ".index.json": {"metadata": {}, "weight_map": {
          "h.0.q.weight": "a.safetensors", "h.1.q.weight": "b.safetensors"}}},
     layers={"h.0.q": (4, 6), "h.1.q": (4, 6)})
case("files-two", "Two files of the list: nothing says which one is the base.",
     {WEIGHTS: {"q.weight": [4, 6]},
      "diffusion_pytorch_model.safetensors": {"q.weight": [4, 6]}},
     layers={"q": (4, 6)}, refused="section 2")
case("files-none", "A file of another name is not the base of its folder.",
     {"weights.safetensors": {"q.weight": [4, 6]}}, layers={"q": (4, 6)}, refused="section 2")

# Section 4: names

case("names-nearest", "Step 4: two translations fit, and the smaller change counts.",
     {"m.dec.layers.0.q.weight": [4, 6], "a.b.c.layers.0.q.weight": [4, 6]},
     layers={"layers.0.q": (4, 6)})
case("names-sense", "The smaller change puts a text with a sense in it, so both count.",
     {"m.devit.layers.0.q.weight": [4, 6], "a.b.c.layers.0.q.weight": [4, 6]},
     layers={"layers.0.q": (4, 6)}, refused="R89")
case("names-any-pair", "Any wanted name can give the translation, not only the first or the last.",
     {"a.a.q.weight": [4, 6], "m.n.o.layers.0.q.weight": [4, 6], "z.z.q.weight": [4, 6],
      "a.q.weight": [4, 6], "z.a.q.weight": [4, 6], "z.b.q.weight": [4, 6]},
     layers={"a.a.q": (4, 6), "a.q": (4, 6), "n.layers.0.q": (4, 6), "z.a.q": (4, 6),
             "z.b.q": (4, 6), "z.z.q": (4, 6)})

# Section 6.4: attention

ATTENTION = {"attn.in_proj_weight": [12, 4], "attn.in_proj_bias": [12],
             "attn.out_proj.weight": [4, 4], "attn.out_proj.bias": [4]}
BOTH = {"attn": (12, 4, "bias"), "attn.base_layer.out_proj": (4, 4, "bias")}
case("attention-bias", "The biases of an nn.MultiheadAttention are in_proj_bias and out_proj.bias.",
     ATTENTION, layers=BOTH, config={"lora_bias": True})
case("attention-bias-twice", "PEFT adds the weight of out_proj twice, and its bias once.",
     ATTENTION, layers=BOTH, config={"lora_bias": True}, options={"OutProjTwice": True})

# Section 8.1: experts

def experts(m, n, count):
    return {"mlp.experts.lora_A.weight": [2 * count, n], "mlp.experts.lora_B.weight": [m, 2 * count]}
def modules(m, n, count):
    return {f"mlp.experts.{e}.down_proj.weight": [m, n] for e in range(count)}
PARAMETERS = {"target_parameters": ["mlp.experts.down_proj"]}
case("experts-modules", "A module for each expert.", modules(4, 6, 2),
     saved=experts(4, 6, 2), config=PARAMETERS)
case("experts-more", "The base has a third expert.", modules(4, 6, 3),
     saved=experts(4, 6, 2), config=PARAMETERS, refused="R106")
case("experts-fewer", "The base lacks the second expert.", modules(4, 6, 1),
     saved=experts(4, 6, 2), config=PARAMETERS, refused="R88")
case("experts-uneven", "The second expert has another shape.",
     modules(4, 6, 2) | {"mlp.experts.1.down_proj.weight": [6, 6]},
     saved=experts(4, 6, 2), config=PARAMETERS, refused="R106")

# Section 10: parts of the original base

def original(name, comment, init, weight, m, n, **rest):
    case(name, comment, {"q.weight": ([m, n], weight)}, layers={"q": (m, n)},
         config={"init_lora_weights": init}, options={"RecomputeResidual": True}, **rest)
original("pissa-above", "The rank is above the smaller side: P is W.", "pissa", [3.0, -2.0, 5.0], 1, 3)
original("olora-above", "The rank is above the smaller side: P is W.", "olora", [3.0, -2.0, 5.0], 1, 3)
original("pissa-equal", "Two equal singular values at the cut: P is any of many parts.", "pissa",
         [2.0, 0, 0, 0, 1, 0, 0, 0, 1], 3, 3, refused="R118")
original("pissa-low", "W has a lower rank: the zeros at the cut are equal, and no matter.", "pissa",
         [2.0, 4, 6, 1, 2, 3, 3, 6, 9], 3, 3)
original("olora-dependent", "The second column is a multiple of the first one: Q is not unique.",
         "olora", [1.0, 2, 5, 2, 4, 1, 3, 6, 2], 3, 3, refused="R118")
original("olora-zero", "The first column is zero.", "olora", [0.0, 2, 5, 0, 4, 1, 0, 6, 2], 3, 3,
         refused="R118")

# Section 12: tied ends

EMBEDDING, LAYER = {"model.embed_tokens.weight": [9, 4]}, {"model.layers.0.q.weight": [4, 4]}
for answer in ("untie", "fold"):
    case(f"tied-uncertain-{answer}", "Nothing says whether the base is tied; the answer decides.",
         EMBEDDING | LAYER, layers={"lm_head": (9, 4), "model.layers.0.q": (4, 4)},
         options={"Tied": answer})
case("tied-unknown", "Two input embeddings: the ends are unknown, and each embedding counts as one.",
     {WEIGHTS: {"a.embed_tokens.weight": [9, 4], "b.embed_tokens.weight": [9, 4]},
      "config.json": LLAMA | {"tie_word_embeddings": True}},
     saved={"a.embed_tokens.weight": [9, 4]}, config={"modules_to_save": ["embed_tokens"]},
     refused="R123")
case("tied-unknown-answer", "An answer needs the embedding.",
     {WEIGHTS: {"a.embed_tokens.weight": [9, 4], "b.embed_tokens.weight": [9, 4]},
      "config.json": LLAMA | {"tie_word_embeddings": True}},
     saved={"a.embed_tokens.weight": [9, 4]}, config={"modules_to_save": ["embed_tokens"]},
     options={"Tied": "fold"}, refused="R127")
TWO = {WEIGHTS: EMBEDDING | {"lm_head.weight": [9, 4], "embed_out.weight": [9, 4]},
       "config.json": LLAMA | {"tie_word_embeddings": True}}
case("tied-first-head", "Of two heads the first by its name is the end.", TWO,
     layers={"embed_out": (9, 4)}, refused="R123")
case("tied-second-head", "The second one is not.", TWO, layers={"lm_head": (9, 4)})

# Section 13: tensors that the base lacks

ADD = {"AddTensors": True}
case("add-beside-heads", "The trunk gets its prefix; the base's own head of a task does not.",
     {"h.0.q.weight": [4, 6], "classifier.weight": [3, 4], "ln_f.weight": [4]},
     layers={"transformer.h.0.q": (4, 6)}, saved={"score.weight": [2, 4]},
     config={"modules_to_save": ["score"]}, options=ADD)
case("add-pooler", "The pooler of DeBERTa is a part of the head.",
     {WEIGHTS: {"h.0.q.weight": [4, 6], "pooler.weight": [3, 4]},
      "config.json": {"model_type": "deberta"}},
     layers={"deberta.h.0.q": (4, 6)}, saved={"score.weight": [2, 4]},
     config={"modules_to_save": ["score"]}, options=ADD)
case("add-deeper", "A translation that puts another prefix gives the base none.",
     {"model.layers.0.q.weight": [4, 6], "model.norm.weight": [4]},
     layers={"model.text_model.layers.0.q": (4, 6)}, saved={"score.weight": [2, 4]},
     config={"modules_to_save": ["score"]}, options=ADD)
case("add-saved-only", "Without layers the best translation of the saved names decides.",
     {"norm.weight": [4], "h.0.q.weight": [4, 6]},
     saved={"model.norm.weight": [4], "score.weight": [2, 4]},
     config={"modules_to_save": ["norm", "score"]}, options=ADD)
