#!/usr/bin/env python3
"""Writes rows.json: which rows of a fused projection are those of each projection, for one small
configuration of every kind of model. Models of transformers 5.24.0 tell it themselves: their own
code divides an output whose numbers are those of the rows. The models of other repositories are
formulas here, as their sources have them: InternLM2, Baichuan, Qwen and ChatGLM2 of their authors,
with einops; NemotronH as the tinker-cookbook divides it; and linear_qkv of Megatron, whose adapters
merge into models that have q, k and v apart.

    make.py"""
import json, os
import torch
import transformers as t
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = dict(hidden_size=8, num_attention_heads=4, num_hidden_layers=1, intermediate_size=6, vocab_size=8,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)
ROWS = {}

def numbers(x): return [int(v) for v in x.flatten().round()]

def entry(name, config, fused, parts, size):
    """parts: the rows of each module of the adapter; size: all rows of the fused module."""
    ROWS[name] = {"config": config, "fused": fused, "size": size,
                  "parts": [[k, numbers(torch.as_tensor(v))] for k, v in parts.items()]}

def stated(config, *members):
    """The members of a configuration as config.json has them."""
    saved = json.loads(config.to_json_string(use_diff=False))
    return {"model_type": config.model_type} | {m: saved[m] for m in members if m in saved}

def captured(model, linear):
    """q, k and v, from the first call of an attention, when the fused linear gives the numbers of its
    rows. The only token is at position 0, where a rotary embedding changes nothing."""
    seen = []
    def attention(module, q, k, v, *args, **kwargs):
        seen.append((q, k, v))
        return q.transpose(1, 2), None
    ALL_ATTENTION_FUNCTIONS.register("capture", attention)
    model.config._attn_implementation = "capture"
    n = linear.weight.shape[0] if isinstance(linear, torch.nn.Linear) else linear.nf
    hook = linear.register_forward_hook(lambda m, args, out: torch.arange(float(n)).expand(*out.shape[:-1], n).clone())
    try: model(input_ids=torch.tensor([[1]]))
    except Exception as e:
        if not seen: raise
    hook.remove()
    q, k, v = (x[0, :, 0] if x.dim() == 4 else x[0] for x in seen[0])
    return n, q, k, v

def qkv(name, model, config, members, fused, path, names=("q_proj", "k_proj", "v_proj")):
    linear = model.get_submodule(path)
    n, q, k, v = captured(model, linear)
    entry(name, stated(config, *members), fused, dict(zip(names, (q, k, v))), n)

HEADS = ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"]

c = t.Phi3Config(**SMALL, num_key_value_heads=2)
qkv("phi3", t.Phi3Model(c).eval(), c, HEADS, "qkv_proj", "layers.0.self_attn.qkv_proj")
c = t.GPTNeoXConfig(**SMALL)
qkv("gpt_neox", t.GPTNeoXModel(c).eval(), c, HEADS, "query_key_value", "layers.0.attention.query_key_value")
qkv("gpt_neox, other names", t.GPTNeoXModel(c).eval(), c, HEADS, "query_key_value",
    "layers.0.attention.query_key_value", names=("query", "key", "value"))
c = t.PersimmonConfig(**SMALL)
parts = t.PersimmonModel(c).layers[0].self_attn._split_heads(torch.arange(24.)[None, None])
entry("persimmon", stated(c, *HEADS), "query_key_value", dict(zip(("q_proj", "k_proj", "v_proj"), parts)), 24)
for kind, more, kv in (("old, one head for all keys", dict(multi_query=True), 1),
                       ("old, a head for each query", dict(multi_query=False), 4),
                       ("new", dict(new_decoder_architecture=True, num_kv_heads=2), 2)):
    c = t.FalconConfig(**SMALL, alibi=False, **more)
    a = t.FalconModel(c).h[0].self_attention
    n = a.query_key_value.weight.shape[0]
    q, k, v = a._split_heads(torch.arange(float(n))[None, None])
    k, v = (x[0, 0, ::x.shape[2] // kv] for x in (k, v))  # repeated for their queries
    entry("falcon, " + kind, stated(c, *HEADS, "num_kv_heads", "multi_query"), "query_key_value",
          {"q_proj": q, "k_proj": k, "v_proj": v}, n)
c = t.BloomConfig(hidden_size=8, n_head=4, n_layer=1, vocab_size=8)
m = t.BloomModel(c).eval()
q, k, v = m.h[0].self_attention._reshape(torch.arange(24.)[None, None])
entry("bloom", stated(c, "hidden_size", "n_head"), "query_key_value",
      {x: y[0, :, 0] for x, y in zip(("q_proj", "k_proj", "v_proj"), (q, k, v))}, 24)
c = t.GPT2Config(n_embd=8, n_head=4, n_layer=1, vocab_size=8)
qkv("gpt2", t.GPT2Model(c).eval(), c, ["n_embd", "n_head"], "c_attn", "h.0.attn.c_attn")
for many in (True, False):
    c = t.GPTBigCodeConfig(n_embd=8, n_head=4, n_layer=1, vocab_size=8, multi_query=many)
    m = t.GPTBigCodeModel(c).eval()
    qkv(f"gpt_bigcode, {'one head for all keys' if many else 'a head for each query'}", m, c,
        ["n_embd", "n_head", "multi_query"], "c_attn", "h.0.attn.c_attn")
c = t.ModernBertConfig(**{**SMALL, "pad_token_id": 0}, cls_token_id=1, sep_token_id=2)
qkv("modernbert", t.ModernBertModel(c).eval(), c, HEADS, "Wqkv", "layers.0.attn.Wqkv")
rows = torch.arange(24.)
for name, config, fused in (("mpt", {"model_type": "mpt", "d_model": 8, "n_heads": 4}, "Wqkv"),  # chunk(3)
                            ("baichuan", {"model_type": "baichuan", "hidden_size": 8, "num_attention_heads": 4}, "W_pack"),
                            ("qwen", {"model_type": "qwen", "hidden_size": 8, "num_attention_heads": 4}, "c_attn")):
    entry(name, config, fused, dict(zip(("q_proj", "k_proj", "v_proj"), rows.chunk(3))), 24)

# MLPs: the module's own activation shows which half is the gate.
for name, cls, config, fused in (("phi3 gates", "Phi3MLP", t.Phi3Config(**SMALL), "gate_up_proj"),
                                 ("glm gates", "GlmMLP", t.GlmConfig(**SMALL), "gate_up_proj"),
                                 ("glm4 gates", "Glm4MLP", t.Glm4Config(**SMALL), "gate_up_proj")):
    module = getattr(__import__(f"transformers.models.{config.model_type}.modeling_{config.model_type}", fromlist=[cls]), cls)(config)
    seen = []
    module.activation_fn.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    module.gate_up_proj.register_forward_hook(lambda m, a, out: torch.arange(12.)[None])
    module(torch.zeros(1, 8))
    gate = numbers(seen[0])
    entry(name, stated(config, *HEADS), fused,
          {"gate_proj": gate, "up_proj": [x for x in range(12) if x not in gate]}, 12)
rows = torch.arange(12.)
GLM = {"model_type": "chatglm", "hidden_size": 8, "num_attention_heads": 4, "multi_query_attention": True,
       "multi_query_group_num": 2, "kv_channels": 2}
entry("chatglm gates", GLM, "dense_h_to_4h", dict(zip(("gate_proj", "up_proj"), rows.chunk(2))), 12)
q, k, v = torch.arange(16.).split([8, 4, 4])
entry("chatglm", GLM, "query_key_value", {"q_proj": q, "k_proj": k, "v_proj": v}, 16)

# Linear attention.
SIZES = dict(linear_num_key_heads=2, linear_key_head_dim=3, linear_num_value_heads=4, linear_value_head_dim=2)
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
c = t.Qwen3NextConfig(**SMALL, **SIZES, layer_types=["linear_attention"])
m = Qwen3NextGatedDeltaNet(c, 0)
n, nb = m.in_proj_qkvz.weight.shape[0], m.in_proj_ba.weight.shape[0]
q, k, v, z, b, a = m.fix_query_key_value_ordering(torch.arange(float(n))[None, None], torch.arange(float(nb))[None, None])
members = HEADS + [*SIZES]
entry("qwen3_next", stated(c, *members), "in_proj_qkvz", dict(in_proj_q=q, in_proj_k=k, in_proj_v=v, in_proj_z=z), n)
entry("qwen3_next, b and a", stated(c, *members), "in_proj_ba", dict(in_proj_b=b, in_proj_a=a), nb)
q, k, v = torch.arange(20.).split([6, 6, 8])
entry("qwen3_5", {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text", "hidden_size": 8} | SIZES},
      "in_proj_qkv", dict(in_proj_q=q, in_proj_k=k, in_proj_v=v), 20)
gate, x, _ = torch.arange(23.).split([6, 6, 11])
entry("nemotron_h", {"model_type": "nemotron_h", "hidden_size": 8, "mamba_num_heads": 3, "mamba_head_dim": 2},
      "in_proj", dict(gate_proj=gate, x_proj=x), 23)

# b q (h gs d) -> b q h gs d, with gs = 2 + 4/2 and d = 2
grouped = torch.arange(16.).view(2, 4, 2)
entry("internlm2", {"model_type": "internlm2", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2},
      "wqkv", dict(wq=grouped[:, :2], wk=grouped[:, -2], wv=grouped[:, -1]), 16)

# Megatron-Bridge, split_qkv_weights: 4 heads, 2 groups, heads of 2
heads, groups, size = 4, 2, 2
each = heads // groups + 2
slots = torch.arange(each * groups * size).view(each * groups, size)
q = torch.cat([torch.arange(each * i, each * i + heads // groups) for i in range(groups)])
entry("megatron", {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}, "linear_qkv",
      {"q_proj": slots[q], "k_proj": slots[each - 2::each], "v_proj": slots[each - 1::each]}, each * groups * size)

with open(f"{HERE}/rows.json", "w") as f:
    f.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in ROWS.items()) + "\n}\n")
