"""R143, R144: projections that are fused in one module (spec/NAMES.md, section 3)."""
from exact import M, noise
from kit import adapter, bad, lin, ok, tensors_of

X = "model.layers.0.self_attn."
N = 4  # inputs
TWO_HEADS = {"hidden_size": 4, "num_attention_heads": 2}  # of 2 rows


def rows(d, at, size):
    """Row i of d as row at[i] of a matrix of zeros."""
    out = [[0] * N for _ in range(size)]
    for r, i in zip(d.rows, at):
        out[i] = r
    return M(out)


# case | model type | config | fused | rows of it | module | its rows in the fused weight
TABLE = """
phi3-q          | phi3         | heads | qkv_proj        | 8  | q_proj    | 0 1 2 3
phi3-k          | phi3         | heads | qkv_proj        | 8  | k_proj    | 4 5
phi3-v          | phi3_v       | heads | qkv_proj        | 8  | v_proj    | 6 7
gate            | glm4         |       | gate_up_proj    | 6  | gate_proj | 0 1 2
up              | glm          |       | gate_up_proj    | 6  | up_proj   | 3 4 5
pack            | baichuan     |       | W_pack          | 12 | k_proj    | 4 5 6 7
neox-k          | gpt_neox     | heads | query_key_value | 12 | k_proj    | 2 3 8 9
neox-value      | gpt_neox     | heads | query_key_value | 12 | value     | 4 5 10 11
falcon-one-key  | falcon       | heads | query_key_value | 8  | q_proj    | 0 1 2 3
falcon-key      | falcon       | heads | query_key_value | 8  | k_proj    | 4 5
bloom           | bloom        | bloom | query_key_value | 12 | q_proj    | 0 1 6 7
bigcode         | gpt_bigcode  | gpt   | c_attn          | 8  | v_proj    | 6 7
groups-q        | internlm2    | wide  | wqkv            | 16 | wq        | 0 1 2 3 8 9 10 11
groups-k        | internlm2    | wide  | wqkv            | 16 | wk        | 4 5 12 13
groups-v        | internlm2    | wide  | wqkv            | 16 | wv        | 6 7 14 15
chatglm         | chatglm      | glm   | query_key_value | 8  | v_proj    | 6 7
linear-v        | qwen3_5      | inner | in_proj_qkv     | 10 | in_proj_v | 8 9
linear-k        | qwen3_5_moe  | key   | in_proj_qkv     | 10 | in_proj_k | 4 5 6 7
keys-k          | qwen3_next   | key   | in_proj_qkvz    | 16 | in_proj_k | 2 3 10 11
keys-z          | qwen3_next   | key   | in_proj_qkvz    | 16 | in_proj_z | 6 7 14 15
keys-a          | qwen3_next   | key   | in_proj_ba      | 8  | in_proj_a | 2 3 6 7
mamba           | nemotron_h   | mamba | in_proj         | 9  | x_proj    | 2 3
"""
CONFIGS = {
    "": {}, "heads": TWO_HEADS, "bloom": {"n_embed": 4, "n_head": 2}, "gpt": {"n_embd": 4, "n_head": 2},
    "wide": {"hidden_size": 8, "num_attention_heads": 4}, "glm": TWO_HEADS | {"multi_query_attention": True},
    "key": {"linear_num_key_heads": 2, "linear_key_head_dim": 2},
    "inner": {"linear_num_key_heads": 9, "text_config": {"linear_num_key_heads": 2, "linear_key_head_dim": 2}},
    "mamba": {"mamba_num_heads": 2, "mamba_head_dim": 1},
}
for line in TABLE.strip().splitlines():
    name, model, config, fused, size, module, at = (x.strip() for x in line.split("|"))
    size, at = int(size), [int(i) for i in at.split()]
    x = lin(X + module, len(at), N, r=2)
    ok("r143-" + name, {X + fused + ".weight": ("BF16", (size, N))}, adapter(x),
       {X + fused + ".weight": rows(x.d, at, size)}, config={"model_type": model} | CONFIGS[config])

# All parts of a weight: no row belongs to two of them.
three = [lin(X + m, 4, N, r=2) for m in ("q_proj", "k_proj", "v_proj")]
turns = rows(three[0].d, (0, 1, 6, 7), 12) + rows(three[1].d, (2, 3, 8, 9), 12) + rows(three[2].d, (4, 5, 10, 11), 12)
ok("r92-parts-in-turns", {X + "query_key_value.weight": ("F32", (12, N))}, adapter(*three),
   {X + "query_key_value.weight": turns}, config={"model_type": "persimmon"} | TWO_HEADS)
x = lin("transformer.h.0.attn.k_proj", 4, N, r=2)  # Conv1D
ok("r143-transposed", {"transformer.h.0.attn.c_attn.weight": ("F32", (N, 12))}, adapter(x),
   {"transformer.h.0.attn.c_attn.weight": rows(x.d, (4, 5, 6, 7), 12).t}, config={"model_type": "gpt2"})

# A fused module on parts, under other names too.
Q, K, V = (X + p + ".weight" for p in ("q_proj", "k_proj", "v_proj"))
PARTS = tensors_of({Q: ("F32", (8, N)), K: ("BF16", (4, N)), V: ("F16", (4, N)),
                    "model.layers.0.mlp.gate_proj.weight": ("F32", (3, N)),
                    "model.layers.0.mlp.up_proj.weight": ("F32", (3, N))})
WIDE = CONFIGS["wide"]
x = lin(X + "qkv_proj", 16, N, r=2)
ok("r143-parts", PARTS, adapter(x), {Q: x.d[0:8], K: x.d[8:12], V: x.d[12:16]})
x = lin("model.layers.0.mlp.gate_up_proj", 6, N)
ok("r143-gates-apart", PARTS, adapter(x), {"model.layers.0.mlp.gate_proj.weight": x.d[0:3],
                                           "model.layers.0.mlp.up_proj.weight": x.d[3:6]})
x, w1 = lin("model.layers.0.attention.wqkv", 16, N), lin("model.layers.0.feed_forward.w1", 3, N)
ok("r143-parts-in-groups", PARTS, adapter(x, w1), config={"model_type": "llama"} | WIDE,
   want={Q: M(x.d.rows[0:4] + x.d.rows[8:12]), K: M(x.d.rows[4:6] + x.d.rows[12:14]),
         V: M(x.d.rows[6:8] + x.d.rows[14:16]), "model.layers.0.mlp.gate_proj.weight": w1.d})
x = lin("transformer.encoder.layers.0.self_attention.query_key_value", 16, N)
ok("r143-glm", PARTS, adapter(x), {Q: x.d[0:8], K: x.d[8:12], V: x.d[12:16]}, config={"model_type": "glm"})
x = lin("transformer.h.0.attn.c_attn", 16, N)
ok("r143-qwen", PARTS, adapter(x), {Q: x.d[0:8], K: x.d[8:12], V: x.d[12:16]}, config={"model_type": "llama"})
x, fc1 = lin("decoder.layers.0.self_attention.linear_qkv", 16, N), lin("decoder.layers.0.mlp.linear_fc1", 6, N)
ok("r143-megatron", PARTS, adapter(x, fc1), config={"model_type": "qwen3"} | WIDE,
   want={Q: M(x.d.rows[0:4] + x.d.rows[8:12]), K: M(x.d.rows[4:6] + x.d.rows[12:14]),
         V: M(x.d.rows[6:8] + x.d.rows[14:16]), "model.layers.0.mlp.gate_proj.weight": fc1.d[0:3],
         "model.layers.0.mlp.up_proj.weight": fc1.d[3:6]})
bad("r88-megatron-with-gates", PARTS, adapter(lin("decoder.layers.0.self_attention.linear_qkv", 16, N)),
    config={"model_type": "qwen3_5"} | WIDE)
tinker = lin("model.layers.0.attn.q_proj", 8, N)
ok("r88-tinker-attn", PARTS, adapter(tinker), {Q: tinker.d})

# No line.
PHI = {X + "qkv_proj.weight": ("F32", (8, N))}
q = lin(X + "q_proj", 4, N)
bad("r88-fused-no-type", PHI, adapter(q), config=TWO_HEADS)
bad("r88-fused-other-type", PHI, adapter(q), config={"model_type": "minimax"} | TWO_HEADS)
bad("r88-old-chatglm", {X + "query_key_value.weight": ("F32", (12, N))}, adapter(q),
    config={"model_type": "chatglm"} | TWO_HEADS)
bad("r88-one-part-missing", {Q: ("F32", (8, N)), K: ("F32", (4, N))}, adapter(lin(X + "qkv_proj", 16, N)))
bad("r88-fused-adapter-of-another", PARTS, adapter(lin("model.layers.0.attention.wqkv", 16, N)),
    config={"model_type": "mistral"} | WIDE)

# Sizes that do not go together, numbers that are missing, and forms that cannot be divided.
P3 = {"model_type": "phi3"} | TWO_HEADS
bad("r143-rows-of-q", PHI, adapter(lin(X + "q_proj", 3, N)), config=P3)
bad("r143-columns", PHI, adapter(lin(X + "q_proj", 4, 3)), config=P3)
bad("r143-odd-rest", {X + "qkv_proj.weight": ("F32", (9, N))}, adapter(q), config=P3)
bad("r143-no-rest", {X + "qkv_proj.weight": ("F32", (4, N))}, adapter(q), config=P3)
bad("r143-sum", PARTS, adapter(lin(X + "qkv_proj", 17, N)))
bad("r143-no-whole-heads", {X + "query_key_value.weight": ("F32", (6, N))}, adapter(q),
    config={"model_type": "bloom", "hidden_size": 4, "n_head": 2})
bad("r143-key-heads", {X + "in_proj_ba.weight": ("F32", (6, N))}, adapter(lin(X + "in_proj_b", 3, N)),
    config={"model_type": "qwen3_next"} | CONFIGS["key"])
bad("r144-no-heads", PHI, adapter(q), config={"model_type": "phi3", "hidden_size": 4})
ok("r144-head-size", PHI, adapter(q), {X + "qkv_proj.weight": rows(q.d, range(4), 8)},
   config={"model_type": "phi3", "head_dim": 2, "num_attention_heads": 2})
bad("r144-no-key-heads", {X + "in_proj_ba.weight": ("F32", (8, N))}, adapter(lin(X + "in_proj_b", 4, N)),
    config={"model_type": "qwen3_next"})
bad("r144-no-heads-for-parts", PARTS, adapter(lin("model.layers.0.attention.wqkv", 16, N)), config={"model_type": "llama"})
bad("r91-magnitude-of-a-part", PHI, adapter(lin(X + "q_proj", 4, N, magnitude=noise("qm", "F32", (4,))),
                                            requires=[("dora", X + "q_proj")]), config=P3)
bad("r91-bias-of-a-part", PHI, adapter(lin(X + "q_proj", 4, N, bias=noise("qb", "F32", (4,))),
                                       requires=[("lora-bias", X + "q_proj")]), config=P3)

# Gate and up of experts in turns.
UP = "model.layers.0.mlp.experts.gate_up_proj"
GPT = {"model_type": "gpt_oss"}
gate, up = (lin(f"model.layers.0.mlp.experts.1.{m}", 3, N, r=2) for m in ("gate_proj", "up_proj"))
both = rows(gate.d, (0, 2, 4), 6) + rows(up.d, (1, 3, 5), 6)
ok("r109-turns", {UP: ("BF16", (2, N, 6))}, adapter(gate, up), {UP: [M([[0] * 6] * N), both.t]}, config=GPT,
   answers="expert-turns")
ok("r109-turns-of-up", {UP: ("F32", (2, 6, N))}, adapter(up), {UP: [M([[0] * N] * 6), rows(up.d, (1, 3, 5), 6)]},
   config={"model_type": "openai_privacy_filter"}, answers="expert-turns")
ok("r109-no-turns", {UP: ("F32", (2, 6, N))}, adapter(up), {UP: [M([[0] * N] * 6), rows(up.d, (3, 4, 5), 6)]},
   config={"model_type": "mixtral"}, answers="expert-turns")

# Without the numbers, the layers for all parts say their rows.
three = [lin(X + m, n, N, r=2) for m, n in (("q_proj", 4), ("k_proj", 2), ("v_proj", 2))]
whole = rows(three[0].d, range(4), 8) + rows(three[1].d, (4, 5), 8) + rows(three[2].d, (6, 7), 8)
ok("r144-all-parts", PHI, adapter(*three), {X + "qkv_proj.weight": whole}, config={"model_type": "phi3"})
bad("r144-two-parts", PHI, adapter(*three[:2]), config={"model_type": "phi3"})
bad("r143-all-parts-too-few", {X + "qkv_proj.weight": ("F32", (9, N))}, adapter(*three), config={"model_type": "phi3"})
