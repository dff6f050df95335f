"""R140-R146 of spec/METHODS.md: rows of B in the order of llama.cpp."""
from exact import M
from kit import Fraction, Layer, adapter, bad, lin, ok, replace, tensors_of
from methods import loha

Q, K, V = (f"model.layers.0.self_attn.{x}_proj" for x in "qkv")
BASE = tensors_of({Q + ".weight": ("F32", (8, 6)), K + ".weight": ("BF16", (4, 6)),
                   V + ".weight": ("F32", (8, 6)), "square.weight": ("F16", (8, 8)),
                   "t.weight": ("F32", (6, 8)), "ones.weight": ("F32", (8, 6, 1)),
                   "e.weight": ("F32", (8, 6)), "c.weight": ("F32", (8, 6, 1)),
                   "model.experts.gate_up_proj": ("F32", (2, 16, 6))})

# The formula of section 6, as a row of B′ for each row of B, by the size of a head. These lists
# are written down, not computed: h·d + t·(d/2) + i takes h·d + 2i + t.
ORDERS = {2: [0, 1], 4: [0, 2, 1, 3], 6: [0, 2, 4, 1, 3, 5], 8: [0, 2, 4, 6, 1, 3, 5, 7]}
HEADS = {"head_dim": 4}


def ordered(d, m):
    """The rows of a matrix, in the order of transformers."""
    order = ORDERS[d]
    return M([m.rows[head + i] for head in range(0, len(m.rows), d) for i in order])


def pairs(*layers):
    return [("rotary-pairs", x.module) for x in layers]


def right(name, layer, d, config=HEADS, **more):
    d = layer.s * (ordered(d, layer.B) @ layer.A)
    ok("r140-" + name, BASE, adapter(layer, requires=pairs(layer)), config=config,
       want={layer.module + ".weight": d.t if more.get("turned") else d})


# --- R140: which layers
q, k, v = lin(Q, 8, 6, r=2), lin(K, 4, 6), lin(V, 8, 6)
right("two-heads", q, 4)
right("one-head", k, 4)
right("heads-of-two-stay", q, 2, {"head_dim": 2})
right("one-head-of-eight", q, 8, {"head_dim": 8})
right("square", lin("square", 8, 8), 4)
right("transposed", lin("t", 8, 6), 4, turned=True)
right("three-dimensions", lin("ones", 8, 6), 4)
x = lin("model.experts.0.gate_proj", 8, 6)
ok("r140-one-expert-in-a-module", {"model.experts.0.gate_proj.weight": ("F32", (8, 6))},
   adapter(x, requires=pairs(x)), config=HEADS,
   want={"model.experts.0.gate_proj.weight": x.s * (ordered(4, x.B) @ x.A)})
half = Fraction(1, 2)
ok("r140-named-alone", BASE, [(adapter(q, k, v, requires=pairs(q, k)), 0.5)], config=HEADS, want={
    Q + ".weight": half * q.s * (ordered(4, q.B) @ q.A),
    K + ".weight": half * k.s * (ordered(4, k.B) @ k.A), V + ".weight": half * v.d})
straight = lin(Q, 8, 6, r=2, salt="straight")
ok("r140-of-one-adapter", BASE, [adapter(q, requires=pairs(q)), adapter(straight)], config=HEADS,
   want={Q + ".weight": q.s * (ordered(4, q.B) @ q.A) + straight.d})

for name, layers, requires in (
        ("no-layer", [v], pairs(q)), ("nowhere", [q], [("rotary-pairs", "")]),
        ("embedding", [lin("e", 6, 8, kind="embedding")], [("rotary-pairs", "e")]),
        ("convolution", [Layer("c", (1, 6, 1), (8, 1, 1), kind="conv")],
         [("rotary-pairs", "c"), ("convolution", "c")]),
        ("hadamard", [loha("e", m=8)], [("rotary-pairs", "e"), ("hadamard", "e")]),
        ("stacked", [Layer("model.experts", (2, 6), (16, 2), kind="expert", r=1)],
         [("rotary-pairs", "model.experts"), ("experts", "model.experts.gate_up_proj")]),
        ("one-expert", [lin("model.experts.0.gate_proj", 8, 6)],
         [("rotary-pairs", "model.experts.0.gate_proj")]),
        ("pooled", [Layer(Q, (1, 3), (8, 1), kind="other")],
         [("rotary-pairs", Q), ("qalora", "use_qalora")]),
        ("bias", [lin(Q, 8, 6, bias=(8,))], [("rotary-pairs", Q), ("lora-bias", Q)]),
        ("magnitude", [lin(Q, 8, 6, magnitude=(8,))], [("rotary-pairs", Q), ("dora", Q)]),
        ("input-magnitude", [lin(Q, 8, 6, input_magnitude=(6,))],
         [("rotary-pairs", Q), ("input-magnitude", Q)])):
    bad("r140-" + name, BASE, adapter(*layers, requires=requires, minor=2), config=HEADS)

# Rows that are not those of one weight: a fused layer on its parts, and a part of a fused weight.
SPLIT = tensors_of({f"transformer.transformer_blocks.0.attn.to_{x}.weight": ("F32", (4, 4))
                    for x in "qkv"} | {"transformer.norm_out.linear.weight": ("F32", (8, 4))})
FUSED = tensors_of({f"model.diffusion_model.double_blocks.0.img_attn.{n}.weight": ("F32", s)
                    for n, s in (("qkv", (12, 4)), ("proj", (4, 4)))})
parts = lin("lora_unet_double_blocks_0_img_attn_qkv", 12, 4)
third = lin("transformer.transformer_blocks.0.attn.to_k", 4, 4)
whole = lin("lora_unet_double_blocks_0_img_attn_qkv", 12, 4)
bad("r140-on-parts", SPLIT, adapter(parts, requires=pairs(parts)), config=HEADS)
bad("r140-in-a-third", FUSED, adapter(third, requires=pairs(third)), config=HEADS)
ok("r140-whole-by-another-name", FUSED, adapter(whole, requires=pairs(whole)), config=HEADS, want={
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight":
        whole.s * (ordered(4, whole.B) @ whole.A)})

# --- R141: config.json | d, or nothing
CONFIGS = """
head-dim             | {'head_dim': 4, 'hidden_size': 16, 'num_attention_heads': 2} | 4
computed             | {'hidden_size': 8, 'num_attention_heads': 2} | 4
head-dim-null        | {'head_dim': None, 'hidden_size': 8, 'num_attention_heads': 4} | 2
head-dim-zero        | {'head_dim': 0, 'hidden_size': 8, 'num_attention_heads': 4} | 2
head-dim-negative    | {'head_dim': -8, 'hidden_size': 8, 'num_attention_heads': 4} | 2
head-dim-text        | {'head_dim': '8', 'hidden_size': 8, 'num_attention_heads': 4} | 2
head-dim-real        | {'head_dim': 8.0, 'hidden_size': 8, 'num_attention_heads': 4} | 2
head-dim-true        | {'head_dim': True, 'hidden_size': 8, 'num_attention_heads': 4} | 2
text-first           | {'head_dim': 8, 'text_config': {'head_dim': 4}} | 4
text-sizes-first  | {'head_dim': 8, 'text_config': {'hidden_size': 8, 'num_attention_heads': 2}} | 4
text-says-nothing    | {'head_dim': 4, 'text_config': {'hidden_size': 8}} | 4
text-null            | {'head_dim': 4, 'text_config': None} | 4
of-text-alone        | {'text_config': {'hidden_size': 8, 'num_attention_heads': 1}} | 8
no-config            | None |
empty                | {} |
no-multiple          | {'hidden_size': 9, 'num_attention_heads': 2} |
no-heads             | {'hidden_size': 8} |
heads-zero           | {'hidden_size': 8, 'num_attention_heads': 0} |
heads-negative       | {'hidden_size': 8, 'num_attention_heads': -2} |
hidden-zero          | {'hidden_size': 0, 'num_attention_heads': 2} |
hidden-negative      | {'hidden_size': -8, 'num_attention_heads': 2} |
head-dim-real-alone  | {'head_dim': 4.0} |
halves-of-two-places | {'hidden_size': 8, 'text_config': {'num_attention_heads': 2}} |
of-images-alone      | {'vision_config': {'head_dim': 4}} |
"""
for line in CONFIGS.strip().splitlines():
    name, config, d = (x.strip() for x in line.split("|"))
    if d:
        ok("r141-" + name, BASE, adapter(q, requires=pairs(q)), config=eval(config), want={
            Q + ".weight": q.s * (ordered(int(d), q.B) @ q.A)})
    else:
        bad("r141-" + name, BASE, adapter(q, requires=pairs(q)), config=eval(config))
ok("r141-nobody-asks", BASE, adapter(q), {Q + ".weight": q.d})

# --- R142
for name, layer, d in (("odd", q, 1), ("odd-of-several", lin("t", 8, 6), 5), ("no-multiple", k, 6),
                       ("more-than-all-rows", k, 8), ("odd-multiple", lin("square", 8, 8), 16)):
    bad("r142-" + name, BASE, adapter(layer, requires=pairs(layer)), config={"head_dim": d})
six = tensors_of({"six.weight": ("F64", (12, 5))})
x = lin("six", 12, 5, r=3, alpha=1)
ok("r142-heads-of-six", six, adapter(x, requires=pairs(x)), config={"head_dim": 6},
   want={"six.weight": x.s * (ordered(6, x.B) @ x.A)})

# --- R145: the order that the model type says
def by_model(*layers):
    return [("rotary-by-model", x.module) for x in layers]


for type_, d in (("llama", 4), ("mistral", 4), ("gemma", 4), ("gemma2", 4),
                 ("qwen2", 2), ("qwen3", 2), ("phi3", 2)): # heads of two stay as they are
    want = {Q + ".weight": q.s * (ordered(d, q.B) @ q.A)}
    ok("r145-" + type_, BASE, adapter(q, requires=by_model(q)), want,
       config=HEADS | {"model_type": type_})
ok("r145-no-heads-needed", BASE, adapter(q, requires=by_model(q)), {Q + ".weight": q.d},
   config={"model_type": "qwen2"})
for name, config in (("other-type", HEADS | {"model_type": "cohere"}), ("no-type", HEADS),
                     ("no-config", None),
                     ("type-of-text", HEADS | {"text_config": {"model_type": "llama"}})):
    bad("r145-" + name, BASE, adapter(q, requires=by_model(q)), config=config)
bad("r141-by-model", BASE, adapter(q, requires=by_model(q)), config={"model_type": "llama"})
bad("r142-by-model", BASE, adapter(q, requires=by_model(q)),
    config={"model_type": "llama", "head_dim": 3})
WITH_BIAS = BASE | tensors_of({Q + ".bias": ("F32", (8,))})
x = lin(Q, 8, 6, bias=(8,))
biased = adapter(x, requires=by_model(x) + [("lora-bias", Q)])
bad("r140-by-model-bias", WITH_BIAS, biased, config=HEADS | {"model_type": "gemma"})
ok("r140-by-model-bias-of-qwen2", WITH_BIAS, biased, config={"model_type": "qwen2"},
   want={Q + ".weight": x.d, Q + ".bias": x.s * x.roles["bias"].matrix()})

# --- R146: a base with the names of Meta's code. The formula of B″, as ORDERS above.
OWN = tensors_of({f"layers.0.attention.{x}.weight": ("F32", (8, 6)) for x in ("wq", "wk", "wv")}
                 | {f"layers.0.feed_forward.{x}.weight": ("F32", (8, 6)) for x in ("w1", "w3")}
                 | {"layers.0.attention.wo.weight": ("F32", (6, 8)), "output.weight": ("F32", (9, 6)),
                    "layers.0.feed_forward.w2.weight": ("F32", (6, 8)),
                    "layers.0.feed_forward.gate.weight": ("F32", (2, 6)),
                    "layers.0.feed_forward.experts.1.w2.weight": ("F32", (6, 8)),
                    "layers.0.attention_norm.weight": ("F32", (6,)), "norm.weight": ("F32", (6,)),
                    "layers.0.ffn_norm.weight": ("F32", (6,)),
                    "tok_embeddings.weight": ("F32", (9, 6))})
BACK = {4: [0, 2, 1, 3], 8: [0, 4, 1, 5, 2, 6, 3, 7]}


def back(d, m):
    """The rows of a matrix in the order of transformers, in that of llama.cpp."""
    return M([m.rows[head + i] for head in range(0, len(m.rows), d) for i in BACK[d]])


k = lin(K, 8, 6)
OTHERS = {"self_attn.v_proj": "attention.wv", "mlp.gate_proj": "feed_forward.w1",
          "mlp.up_proj": "feed_forward.w3", "self_attn.o_proj": "attention.wo",
          "mlp.down_proj": "feed_forward.w2", "block_sparse_moe.experts.1.w2":
          "feed_forward.experts.1.w2", "block_sparse_moe.gate": "feed_forward.gate"}
others = {own: lin("model.layers.0." + n, *OWN[f"layers.0.{own}.weight"].shape)
          for n, own in OTHERS.items()}
head = lin("lm_head", 9, 6)
rest = {f"layers.0.{own}.weight": x.d for own, x in others.items()} | {"output.weight": head.d}
for d in (4, 8):
    ok(f"r146-of-transformers-{d}", OWN, adapter(q, k, head, *others.values()),
       rest | {f"layers.0.attention.{n}.weight": x.s * (back(d, x.B) @ x.A)
               for n, x in (("wq", q), ("wk", k))}, config={"head_dim": d})
ok("r146-of-meta", OWN, adapter(q, k, head, *others.values(), requires=pairs(q, k)),
   rest | {f"layers.0.attention.{n}.weight": x.d for n, x in (("wq", q), ("wk", k))})
ok("r146-by-model", OWN, adapter(q, k, requires=by_model(q) + pairs(k)),
   {f"layers.0.attention.{n}.weight": x.d for n, x in (("wq", q), ("wk", k))})
bad("r141-of-transformers", OWN, adapter(q))
bad("r142-of-transformers", OWN, adapter(q), config={"head_dim": 3})
v = lin(V, 8, 6, magnitude=(8,))
for name, parts, requires in (
        ("magnitude", [lin(Q, 8, 6, magnitude=(8,))], [("dora", Q)]),
        ("saved", [replace(K + ".weight", OWN["layers.0.attention.wk.weight"]), v], [("dora", V)]),
        ("loha", [loha(Q, m=8)], [("hadamard", Q)]),
        ("convolution", [Layer(Q, (1, 6, 1), (8, 1, 1), kind="conv")], [("convolution", Q)])):
    bad("r146-" + name, OWN, adapter(*parts, requires=requires, minor=2), config=HEADS)
n = "model.layers.0.input_layernorm.weight"
ok("r146-norm-saved", OWN, adapter(k, replace(n, OWN["norm.weight"]), requires=pairs(k)),
   {"layers.0.attention.wk.weight": k.d, "layers.0.attention_norm.weight": OWN["norm.weight"]})
# In a base of transformers, the names of Meta's code are no names.
bad("r88-own-names", BASE, adapter(lin("layers.0.attention.wq", 8, 6)), config=HEADS)
