"""The cases: what is merged, and what is refused."""

import hashlib

import peft
import torch
import transformers as tf

from adapters import (
    WEIGHTS,
    Adapter,
    add,
    cast,
    change,
    drop,
    drop_all,
    keep_config,
    lora,
    rename,
    replace,
    save_converted,
    save_f32_modules,
    save_native,
    save_pickle,
    save_pickle_legacy,
    save_untrained,
    save_without_embedding,
    set_config,
    tiny_values,
)
from case import Merge, merge, refuse

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
QUERY0 = "base_model.model.model.layers.0.self_attn.q_proj"


MERGE = [
    # Bases.
    merge(
        "bf16-all-linear",
        "llama-deep",
        lora(target_modules=LINEARS, r=8, lora_alpha=16),
        "Every linear layer of a BF16 llama.",
    ),
    merge("f16", "llama-f16", lora(), "An F16 base."),
    merge("f32", "llama-f32", lora(), "An F32 base."),
    merge(
        "f64",
        "llama-f64",
        lora(r=3, lora_alpha=6),
        "An F64 base; the truth is computed in rational arithmetic and rounded once.",
        exact=True,
    ),
    merge(
        "sharded",
        "llama-sharded",
        lora(target_modules=["q_proj", "down_proj"]),
        "A base in three shards, with targets in several of them.",
    ),
    merge(
        "odd-shapes",
        "llama-odd",
        lora(target_modules=["q_proj", "v_proj", "down_proj"], r=5, lora_alpha=10),
        "No dimension is a multiple of 16; rank 5.",
    ),
    merge(
        "tied-linears",
        "llama-tied",
        lora(target_modules=LINEARS[:4]),
        "A base with tied embeddings; the adapter leaves them alone.",
    ),
    merge(
        "gpt2-conv1d",
        "gpt2",
        lora(target_modules=GPT2),
        "Conv1D stores weights as in × out; the attention's c_proj is square.",
    ),
    merge(
        "gpt2-trunk-base",
        "gpt2-trunk",
        lora(target_modules=GPT2, model=tf.GPT2LMHeadModel),
        "The base is saved from GPT2Model, as on the hub; the adapter is trained in GPT2LMHeadModel.",
    ),
    merge("qwen2", "qwen2", lora(target_modules="all-linear"), "The shorthand all-linear, expanded when saved."),
    merge(
        "bert", "bert", lora(target_modules=["query", "value", "dense"], task_type="FEATURE_EXTRACTION"), "An encoder."
    ),
    merge(
        "t5",
        "t5",
        lora(target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"),
        "An encoder-decoder; one file for both halves.",
    ),
    # Scale.
    merge("rslora", "llama-bf16", lora(r=8, use_rslora=True), "Scale α/√r.", size=(0.2, 1)),
    merge(
        "rslora-rank-pattern",
        "llama-bf16",
        lora(use_rslora=True, rank_pattern={"v_proj": 9}),
        "Scale α/√r with the module's own rank.",
        size=(0.2, 1),
    ),
    merge(
        "patterns-regex",
        "llama-deep",
        lora(
            target_modules=LINEARS[:4],
            rank_pattern={r"layers\.1\.self_attn\.[qk]_proj": 6, "o_proj": 2},
            alpha_pattern={r"layers\.\d+\.self_attn\.(q|v)_proj": 12, r".*\.0\..*\.k_proj": 4},
        ),
        "Ranks and alphas by regular expressions.",
    ),
    merge(
        "patterns-overlap",
        "llama-deep",
        lora(rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 6}),
        "Both keys match the q projection of layer 0; the first one in alphabetical order wins.",
        warn=["rank_pattern"],
    ),
    merge(
        "patterns-overlap-alpha",
        "llama-deep",
        lora(alpha_pattern={"q_proj": 12, "layers.0.self_attn.q_proj": 4}),
        "In training q_proj comes first and α is 12 in layer 0; the saved file is sorted, so PEFT reloads it with 4.",
        warn=["alpha_pattern"],
    ),
    merge(
        "patterns-anchored",
        "llama-deep",
        lora(
            rank_pattern={"^model.layers.0.self_attn.q_proj": 6, "^layers.1.self_attn.q_proj": 3},
            alpha_pattern={"^model.layers.1.self_attn.v_proj": 4},
        ),
        "Keys that start with ^; the second one matches nothing.",
    ),
    merge(
        "alpha-fraction", "llama-bf16", lora(lora_alpha=7.3, r=3), "A fractional α; the scale is not a dyadic number."
    ),
    merge(
        "rank-above-dimension",
        "llama-f32",
        lora(r=40, lora_alpha=20),
        "The rank is larger than both dimensions of a weight.",
    ),
    # Which modules.
    merge("layers-to-transform", "llama-deep", lora(layers_to_transform=[1]), "Layer 1 alone."),
    merge(
        "target-regex",
        "llama-deep",
        lora(target_modules=r"model\.layers\.[01]\.(self_attn\.k_proj|mlp\.up_proj)"),
        "target_modules is a regular expression.",
    ),
    merge(
        "exclude-modules",
        "llama-deep",
        lora(target_modules=LINEARS[:4], exclude_modules=["layers.0.self_attn.q_proj", "k_proj"]),
        "Modules excluded from the targets.",
    ),
    merge(
        "lm-head",
        "llama-bf16",
        lora(target_modules=["lm_head", "v_proj"]),
        "LoRA on the head of an untied llama; PEFT saves the head's base weight too.",
    ),
    merge(
        "embedding",
        "llama-bf16",
        lora(target_modules=["embed_tokens", "q_proj"], lora_alpha=2),
        "LoRA on the embedding of an untied llama; PEFT saves the embedding's base weight too.",
    ),
    merge(
        "embedding-factors-only",
        "llama-bf16",
        lora(target_modules=["embed_tokens", "q_proj"], lora_alpha=2, save=save_without_embedding),
        "The same, saved with save_embedding_layers=False.",
    ),
    # Orientation.
    merge(
        "gpt2-fan-in-fan-out-false",
        "gpt2",
        lora(target_modules=GPT2, fan_in_fan_out=True, disguise=[set_config(fan_in_fan_out=False)]),
        "The config is edited to deny what Conv1D is; the truth is from before the edit.",
        warn=["fan_in_fan_out"],
    ),
    merge(
        "llama-fan-in-fan-out-true",
        "llama-bf16",
        lora(target_modules=LINEARS[:4], disguise=[set_config(fan_in_fan_out=True)]),
        "The config is edited to claim transposed weights, square ones among them; the truth is from before the edit.",
        warn=["fan_in_fan_out"],
    ),
    # Biases.
    merge("lora-bias", "qwen2", lora(lora_bias=True), "lora_B has a bias, scaled like the rest."),
    merge("bias-all", "qwen2", lora(bias="all"), "Every bias of the model is replaced."),
    merge(
        "bias-all-bert",
        "bert",
        lora(bias="all", target_modules=["query"], task_type=None),
        "Biases of norms and of the classifier too.",
        size=(0.03, 2),
    ),
    merge("bias-lora-only", "qwen2", lora(bias="lora_only"), "The biases of the targeted modules are replaced."),
    merge(
        "bias-lora-only-lost",
        "qwen2",
        lora(disguise=[set_config(bias="lora_only", peft_version="0.17.0")]),
        "PEFT 0.7.0 to 0.20.0 does not save the biases of lora_only (edited from an adapter without them).",
        warn=["bias"],
    ),
    # Replaced tensors.
    merge(
        "classifier",
        "bert",
        lora(target_modules=["query", "value"], task_type="SEQ_CLS"),
        "The task type alone saves the classifier.",
    ),
    merge(
        "classifier-roberta",
        "roberta",
        lora(target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"),
        "modules_to_save with a classifier of several layers.",
    ),
    merge(
        "head-saved-f32",
        "llama-bf16",
        lora(modules_to_save=["lm_head"], save=save_f32_modules),
        "modules_to_save holds the head in F32 for a BF16 base.",
    ),
    merge("tokens-list", "llama-bf16", lora(trainable_token_indices=[3, 40, 7]), "Rows of the embedding are replaced."),
    merge(
        "tokens-dict",
        "llama-bf16",
        lora(trainable_token_indices={"embed_tokens": [0, 47], "lm_head": [5]}),
        "Rows of the embedding and of the head are replaced.",
    ),
    # Pickles.
    merge(
        "pickle",
        "bert",
        lora(save=save_pickle, target_modules=["query"], task_type="SEQ_CLS"),
        "Saved with safe_serialization=False: adapter_model.bin, with a classifier.",
    ),
    merge("pickle-bf16", "llama-bf16", lora(save=save_pickle), "A pickle of a BF16 model."),
    merge(
        "pickle-legacy",
        "llama-f32",
        lora(save=save_pickle_legacy),
        "A pickle in the container of torch before 1.6, its factors stored transposed.",
    ),
    # Key names.
    merge(
        "keys-adapter-name",
        "llama-bf16",
        lora(disguise=[replace(".weight", ".default.weight")]),
        "Keys of a raw state dict, with the adapter's name (edited).",
    ),
    merge(
        "keys-adapter-name-modules",
        "bert",
        lora(
            target_modules=["query"],
            task_type="SEQ_CLS",
            disguise=[
                replace("query.lora_A.", "query.lora_A.default."),
                replace("query.lora_B.", "query.lora_B.default."),
                replace("classifier.", "classifier.modules_to_save.default."),
            ],
        ),
        "Keys of a raw state dict with a saved module (edited).",
    ),
    merge(
        "keys-compiled",
        "llama-bf16",
        lora(disguise=[replace("base_model.model.", "base_model.model._orig_mod.")]),
        "Keys of a compiled model (edited).",
    ),
    merge(
        "keys-compiled-outside",
        "llama-bf16",
        lora(disguise=[rename(lambda name: "_orig_mod." + name)]),
        "Keys of a compiled PeftModel (edited).",
    ),
    merge(
        "keys-fsdp",
        "llama-deep",
        lora(
            disguise=[
                rename(lambda name: "_fsdp_wrapped_module." + name),
                replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
                replace("layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module."),
            ]
        ),
        "Keys with the wrappers of FSDP and activation checkpointing (edited).",
    ),
    merge(
        "keys-native",
        "llama-bf16",
        lora(save=save_native),
        "Injected without a PeftModel, as transformers and diffusers do: no base_model.model. prefix. By the formula.",
        by_peft=False,
    ),
    merge(
        "trunk-adapter",
        "llama-bf16",
        lora(model=tf.LlamaModel, task_type="FEATURE_EXTRACTION"),
        "The adapter is trained in LlamaModel, the base is saved from LlamaForCausalLM.",
    ),
    merge(
        "trunk-base",
        "llama-trunk",
        lora(model=tf.LlamaForCausalLM),
        "The adapter is trained in LlamaForCausalLM, the base is saved from LlamaModel.",
    ),
    # Adapter values.
    merge("adapter-bf16", "llama-bf16", lora(cast(torch.bfloat16)), "Factors in BF16 (rounded after saving)."),
    merge("adapter-f16", "llama-bf16", lora(cast(torch.float16)), "Factors in F16 (rounded after saving)."),
    merge(
        "adapter-mixed",
        "llama-f32",
        lora(cast(torch.bfloat16, "lora_A"), cast(torch.float16, "layers.0.self_attn.v_proj.lora_B")),
        "Factors in three dtypes in one file (rounded after saving).",
    ),
    merge(
        "tiny-values",
        "llama-f32",
        lora(tiny_values),
        "Subnormal F32 values and negative zeros in the factors (edited).",
    ),
    merge("untrained", "llama-bf16", lora(save=save_untrained), "lora_B is zero: nothing changes.", size=(0, 0)),
    # Several adapters.
    Merge(
        "two-adapters",
        "llama-bf16",
        [lora(), lora(target_modules=["q_proj", "o_proj"], r=6, lora_alpha=9)],
        "Two adapters of different rank and targets, weighted and rounded once.",
        weights=[0.7, -0.3],
        size=(0.01, 0.7),
    ),
    # Initialisations that leave the base alone, or are converted.
    merge("init-gaussian", "llama-bf16", lora(init_lora_weights="gaussian"), "A Gaussian initialisation."),
    merge("init-orthogonal", "llama-bf16", lora(init_lora_weights="orthogonal"), "An orthogonal initialisation."),
    merge(
        "init-mica",
        "llama-f32",
        lora(init_lora_weights="mica"),
        "MiCA: lora_B is frozen, the base is untouched. By the formula, as PEFT does not load it in float64.",
        by_peft=False,
    ),
    merge(
        "init-eva",
        "llama-bf16",
        lora(
            disguise=[
                set_config(
                    init_lora_weights="eva",
                    eva_config={
                        "adjust_scaling_factors": True,
                        "label_mask_value": -100,
                        "rho": 2.0,
                        "tau": 0.99,
                        "use_label_mask": True,
                        "whiten": False,
                    },
                )
            ]
        ),
        "EVA needs data; an ordinary adapter with its config fields (edited).",
    ),
    merge(
        "pissa-converted",
        "llama-f32",
        lora(init_lora_weights="pissa", save=save_converted),
        "PiSSA, saved as an ordinary adapter of twice the rank on the original base.",
    ),
    merge(
        "olora-converted",
        "llama-f32",
        lora(init_lora_weights="olora", save=save_converted),
        "OLoRA, saved as an ordinary adapter of twice the rank on the original base.",
    ),
    # Configs.
    merge(
        "config-minimal",
        "llama-bf16",
        lora(keep_config("peft_type", "r", "target_modules")),
        "The smallest config (edited); lora_alpha defaults to 8.",
    ),
    merge(
        "config-defaults",
        "llama-bf16",
        lora(keep_config("peft_type", "target_modules"), r=8, lora_alpha=8),
        "Neither r nor lora_alpha (edited); both default to 8.",
    ),
    merge(
        "config-old",
        "llama-bf16",
        lora(
            keep_config(
                "base_model_name_or_path",
                "bias",
                "fan_in_fan_out",
                "inference_mode",
                "init_lora_weights",
                "lora_alpha",
                "lora_dropout",
                "modules_to_save",
                "peft_type",
                "r",
                "target_modules",
                "task_type",
            )
        ),
        "The fields that PEFT 0.3 writes (edited).",
    ),
    merge(
        "config-unknown-off",
        "llama-bf16",
        lora(disguise=[set_config(use_hypothetical=False, hypothetical_config=None, hypothetical_pattern={})]),
        "Unknown fields that are off (edited).",
    ),
]

# DoRA. The magnitudes are those of the base, moved by noise like everything else.

DORA = {"use_dora": True}
MERGE += [
    merge("dora", "llama-f32", lora(**DORA), "DoRA."),
    merge(
        "dora-all-linear",
        "llama-deep",
        lora(target_modules=LINEARS, r=8, lora_alpha=16, use_rslora=True, **DORA),
        "DoRA with rsLoRA on every linear layer of a BF16 llama.",
    ),
    merge(
        "dora-f16-patterns",
        "llama-f16",
        lora(target_modules=LINEARS[:4], rank_pattern={"q_proj": 3}, alpha_pattern={"o_proj": 3}, **DORA),
        "DoRA on an F16 base, with a rank and an alpha of a module's own.",
    ),
    merge(
        "dora-gpt2",
        "gpt2",
        lora(target_modules=GPT2, **DORA),
        "DoRA on Conv1D, whose output features are columns of the stored weight; one of them is square.",
    ),
    merge(
        "dora-embedding",
        "llama-bf16",
        lora(target_modules=["embed_tokens", "q_proj"], lora_alpha=2, **DORA),
        "DoRA on an embedding: the norm is over the vocabulary. PEFT saves the embedding's base weight too.",
    ),
    merge(
        "dora-embedding-factors-only",
        "llama-bf16",
        lora(target_modules=["embed_tokens", "q_proj"], lora_alpha=2, save=save_without_embedding, **DORA),
        "The same, saved with save_embedding_layers=False.",
    ),
    merge(
        "dora-config-denies",
        "llama-f32",
        lora(disguise=[set_config(use_dora=False)], **DORA),
        "Magnitudes in the file, though the config is edited to say use_dora false; the truth is from before the edit.",
        warn=["use_dora"],
    ),
    merge(
        "dora-key-weight",
        "llama-bf16",
        lora(disguise=[replace(".lora_magnitude_vector", ".lora_magnitude_vector.weight")], **DORA),
        "The key of the magnitudes ends with .weight, as in memory (edited).",
    ),
    merge(
        "dora-key-adapter-name",
        "llama-bf16",
        lora(
            disguise=[
                replace(".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
                replace(".weight", ".default.weight"),
            ],
            **DORA,
        ),
        "Keys of a raw state dict, with the adapter's name (edited).",
    ),
    merge("dora-adapter-bf16", "llama-bf16", lora(cast(torch.bfloat16), **DORA), "Factors and magnitudes in BF16."),
]

# Convolutions.

CONV = {"target_modules": ["conv1", "conv2", "conv3", "point"], "task_type": None}
MERGE += [
    merge("conv2d", "siglip", lora(target_modules=["patch_embedding"], task_type=None), "The patch embedding."),
    merge(
        "conv1d",
        "whisper",
        lora(target_modules=["conv1", "conv2"], task_type=None),
        "The two nn.Conv1d at the beginning of the encoder.",
    ),
    merge("conv-all", "blocks", lora(**CONV), "One, two and three dimensions, and a kernel of one point."),
    merge(
        "conv-patterns",
        "blocks-f32",
        lora(use_rslora=True, rank_pattern={"conv3": 2, "point": 5}, alpha_pattern={"conv1": 3}, **CONV),
        "Convolutions with ranks and alphas of their own, and the scale α/√r.",
    ),
    merge("conv-dora", "blocks", lora(use_dora=True, **CONV), "DoRA on convolutions: one magnitude per output channel."),
    merge(
        "conv-lora-bias",
        "blocks",
        lora(lora_bias=True, target_modules=["conv1", "conv2", "point"], task_type=None),
        "lora_B of a convolution has a bias.",
    ),
    merge("conv-dora-f32", "blocks-f32", lora(use_dora=True, **CONV), "The same on an F32 base."),
]

# Experts: raw parameters, most of three dimensions, in target_parameters.

EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
GATE = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}
DOWN = {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}


def experts(name, base, adapter, comment, formula=None, **rest):
    return merge(name, base, adapter, comment, experts=formula or {}, size=(0.01, 1.5), **rest)


def slowest(rank):
    """Stores the columns of lora_B with one expert after the other, as unsloth did."""
    return change("lora_B", lambda b: b.reshape(b.shape[0], rank, -1).transpose(1, 2).reshape(b.shape))


MERGE += [
    experts("experts", "mixtral-stacked", lora(**EXPERTS), "Both parameters of a stack of experts, nested."),
    experts(
        "experts-one-by-one",
        "mixtral",
        lora(**EXPERTS),
        "The checkpoint has a module per expert, under the names of transformers 4; the adapter is for the stack.",
    ),
    experts("experts-qwen", "qwen3-moe-stacked", lora(use_rslora=True, **EXPERTS), "Three experts in F32, scale α/√r."),
    experts("experts-qwen-one-by-one", "qwen3-moe", lora(r=3, **EXPERTS), "The checkpoint has a module per expert."),
    experts("experts-down", "mixtral-stacked", lora(**DOWN), "One parameter alone, without nesting."),
    experts(
        "experts-patterns",
        "mixtral",
        lora(
            rank_pattern={"experts.gate_up_proj": 2}, alpha_pattern={r"mlp\.experts\.down_proj": 3}, r=3, **EXPERTS
        ),
        "Ranks and alphas of the parameters, by their names.",
    ),
    experts(
        "experts-router",
        "mixtral",
        lora(target_modules=[], target_parameters=["mlp.gate.weight", "mlp.experts.down_proj"], lora_alpha=4),
        "The router is a parameter of two dimensions.",
    ),
    experts("experts-gpt-oss", "gpt-oss", lora(**EXPERTS), "gpt-oss has (E, in, out)."),
    experts("experts-gpt-oss-square", "gpt-oss-square", lora(**EXPERTS), "A square gate_up_proj of gpt-oss.", warn=["square"]),
    experts(
        "experts-square",
        "mixtral-square",
        lora(**EXPERTS),
        "A square gate_up_proj beside a down_proj that is not.",
        warn=["square", "other parameters"],
    ),
    experts("experts-square-alone", "mixtral-square", lora(**GATE), "The same alone.", warn=["square", "inputs"]),
    experts(
        "experts-square-flag",
        "mixtral-square-stacked",
        lora(disguise=[set_config(peft_version=None)], **GATE),
        "A square gate_up_proj, no release in the config (edited), and the flag that says what is what.",
        options={"ExpertInput": 2},
        by_peft=False,
        formula={"version": "0.21.2"},
    ),
    experts(
        "experts-slowest",
        "mixtral-stacked",
        lora(slowest(4), **EXPERTS),
        "lora_B with one expert after the other, as unsloth stored it (edited); the flag says so. By the formula.",
        options={"ExpertsSlowest": True},
        by_peft=False,
        formula={"slowest": True},
        warn=["one expert after the other"],
    ),
]

# Compact and fused factors.


def bdlora(*edits, a=(), b=(), nblocks=2, **config):
    method = peft.tuners.lora.BdLoraConfig(
        target_modules_bd_a=list(a), target_modules_bd_b=list(b), nblocks=nblocks, match_strict=False
    )
    return lora(*edits, use_bdlora=method, **config)


def pooled(group):
    """Turns an ordinary adapter into QA-LoRA's form, which PEFT makes for GPTQ layers alone."""
    return [
        set_config(use_qalora=True, qalora_group_size=group),
        change("lora_A", lambda a: a.reshape(a.shape[0], -1, group).mean(dim=2)),
    ]


MHA = {"target_modules": ["attention"], "task_type": None}
MERGE += [
    merge(
        "bdlora",
        "llama-f32",
        bdlora(a=["q_proj"], b=["o_proj"], target_modules=["q_proj", "o_proj", "v_proj"]),
        "BD-LoRA: lora_A of one module and lora_B of another are block-diagonal; the third is ordinary.",
    ),
    merge(
        "bdlora-bf16",
        "llama-bf16",
        bdlora(a=["down_proj", "v_proj"], b=["k_proj", "up_proj"], nblocks=4, r=8, target_modules=LINEARS),
        "Four blocks, and weights that are not square.",
    ),
    merge(
        "qalora",
        "llama-f32",
        lora(*pooled(8)),
        "QA-LoRA needs GPTQ; an ordinary adapter with its config fields and pooled lora_A (edited). The truth is that of"
        " PEFT's forward.",
        by_peft=False,
        size=(0.005, 1.2),
    ),
    merge(
        "qalora-bf16",
        "llama-bf16",
        lora(*pooled(16), target_modules=LINEARS, use_rslora=True),
        "The same on a BF16 base, pooled over 16 inputs.",
        by_peft=False,
        size=(0.005, 1.2),
    ),
    merge(
        "multihead-attention",
        "siglip",
        lora(**MHA),
        "nn.MultiheadAttention: lora_B spans q, k and v of in_proj_weight. PEFT adds the update of out_proj twice; the truth"
        " has it once, by the formula.",
        by_peft=False,
        warn=["out_proj", "twice"],
    ),
    merge(
        "multihead-attention-twice",
        "siglip",
        lora(**MHA),
        "The same as PEFT merges it, with the flag.",
        options={"OutProjTwice": True},
        size=(0.03, 2),
    ),
]

# Modules that transformers 5 has renamed, in memory but not on the disk.


def moved(name, base, modules, comment, **rest):
    adapter = lora(target_modules=modules, task_type=None)
    return merge(name, base, adapter, comment, saved=True, warn=["transformers"], **rest)


BLOCK = ["q_proj", "v_proj", "o_proj", "fc1", "fc2"]
MERGE += [
    moved("moved-vit", "vit", BLOCK, "vit.layers for vit.encoder.layer, and other names of its modules."),
    moved("moved-dinov2", "dinov2", BLOCK[:3], "Other names of the projections."),
    moved("moved-swin", "swin", BLOCK, "Other names of the modules of a block."),
    moved("moved-segformer", "segformer", BLOCK, "stages for encoder.block, with two numbers."),
    moved("moved-llava", "llava", ["q_proj", "linear_1", "fc1", "lm_head"], "The halves are one level further down."),
    moved(
        "moved-llava-hub",
        "llava-hub",
        ["q_proj", "linear_1", "fc1"],
        "The same for a checkpoint that has a vision_model, as those of the hub.",
    ),
    moved("moved-qwen2-vl", "qwen2-vl", ["q_proj", "qkv", "fc1"], "The halves are one level further down."),
]

# Tied ends of which one changes, and vocabularies that have grown. PEFT's merge leaves a tied model behind, or changes both ends,
# depending on its release: by the formula.


def tied(name, base, adapter, comment, untie=False, **rest):
    options = {"Tied": "untie" if untie else "fold"} | rest.pop("options", {})
    return merge(name, base, adapter, comment, by_peft=False, options=options, size=(0, 1.5), **rest)


EMBEDDING = {"target_modules": ["embed_tokens", "q_proj"], "lora_alpha": 2}
HEAD = {"target_modules": ["lm_head", "q_proj"]}
TOKENS = {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [3, 5]}}
GROWN = {"prepare": lambda model: model.resize_token_embeddings(52)}
MERGE += [
    tied("tied-embedding-untie", "llama-tied", lora(**EMBEDDING), "The head keeps the base's values.", untie=True),
    tied("tied-embedding-fold", "llama-tied", lora(**EMBEDDING), "The head changes with the embedding."),
    tied("tied-embedding-dora", "llama-tied", lora(use_dora=True, **EMBEDDING), "DoRA on it.", untie=True),
    tied("tied-head-untie", "llama-tied", lora(**HEAD), "The embedding keeps the base's values.", untie=True),
    tied("tied-head-fold", "llama-tied", lora(**HEAD), "The embedding changes with the head."),
    tied("tied-head-saved-untie", "llama-tied", lora(modules_to_save=["lm_head"]), "A head that is saved.", untie=True),
    tied("tied-tokens-untie", "gpt2", lora(**TOKENS), "Rows of the embedding are replaced.", untie=True),
    tied("tied-tokens-fold", "gpt2", lora(**TOKENS), "Rows of both ends are replaced."),
    tied("tied-sharded-untie", "llama-tied-sharded", lora(**HEAD), "The index names the shard of the head.", untie=True),
    tied("tied-twice-untie", "llama-tied-twice", lora(**HEAD), "The base stores the tied head.", untie=True),
    merge(
        "grown-vocabulary",
        "llama-bf16",
        lora(**GROWN),
        "Four tokens are new: embedding and head are saved whole.",
        by_peft=False,
        options={"GrowVocabulary": True},
        warn=["52"],
    ),
    merge(
        "grown-tokens",
        "llama-bf16",
        lora(trainable_token_indices=[48, 49, 51, 3], **GROWN),
        "Rows of new tokens are trained: PEFT saves the embedding whole, and the rows beside it.",
        by_peft=False,
        options={"GrowVocabulary": True},
    ),
    tied(
        "grown-tokens-tied",
        "llama-tied",
        lora(trainable_token_indices=[48, 49, 51, 3], **GROWN),
        "The same for a tied base: the adapter has everything twice.",
        options={"GrowVocabulary": True},
    ),
    tied(
        "grown-tokens-untie",
        "llama-tied",
        lora(trainable_token_indices=[48, 49, 51, 3], **GROWN),
        "The same, untied.",
        untie=True,
        options={"GrowVocabulary": True},
    ),
    tied(
        "grown-vocabulary-tied",
        "llama-tied",
        lora(**GROWN),
        "The same for a tied base.",
        options={"GrowVocabulary": True},
    ),
]

# Initialisations that take a part out of the base. PEFT computes it in F32 and rounds the rest to the base's dtype; the truth is the
# formula in F64.


def residual(name, base, init, comment, weights=None, **config):
    adapter = lora(init_lora_weights=init, **config)
    about = 0 if weights else 2e-5
    options = {"RecomputeResidual": True}
    return merge(
        name, base, adapter, comment, by_peft=False, options=options, about=about, weights=weights, warn=["float64"]
    )


MERGE += [
    residual("pissa", "llama-f32", "pissa", "PiSSA on the original base."),
    residual("pissa-bf16", "llama-bf16", "pissa", "Every linear layer of a BF16 base.", target_modules=LINEARS, r=8),
    residual("pissa-rslora", "llama-f16", "pissa", "PiSSA with the scale α/√r.", use_rslora=True, r=3),
    residual("pissa-gpt2", "gpt2", "pissa", "PiSSA on Conv1D.", target_modules=GPT2),
    residual("pissa-weight", "llama-f32", "pissa", "Half of the adapter: half of what was taken out.", weights=[0.5]),
    residual("pissa-dora", "llama-f32", "pissa", "DoRA on what PiSSA leaves.", use_dora=True),
    residual("olora", "llama-f32", "olora", "OLoRA on the original base."),
    residual("olora-bf16", "llama-bf16", "olora", "Every linear layer of a BF16 base.", target_modules=LINEARS, r=6),
]

# Methods that merge as ordinary LoRA and save what their training needs.

MERGE += [
    merge(
        "velora",
        "llama-f32",
        lora(velora_config=peft.tuners.lora.VeloraConfig(num_groups=4)),
        "VeLoRA saves a projection of activations.",
        warn=["left out"],
    ),
    merge(
        "monteclora",
        "llama-bf16",
        lora(monteclora_config=peft.tuners.lora.MontecloraConfig(num_samples=2, buffer_size=2)),
        "MonteCLoRA saves its sampler.",
        warn=["left out"],
    ),
]

# Refused: kinds of LoRA.

VARIANTS = [
    refuse(
        "dora-magnitude-missing",
        "llama-f32",
        lora(drop("v_proj.lora_magnitude_vector"), use_dora=True),
        ["lora_magnitude_vector", "v_proj"],
        "One magnitude vector is dropped (edited).",
    ),
    refuse(
        "dora-magnitude-shape",
        "llama-f32",
        lora(change("v_proj.lora_magnitude_vector", lambda m: m[:5]), use_dora=True),
        ["lora_magnitude_vector", "v_proj"],
        "One magnitude vector is too short (edited).",
    ),
    refuse(
        "qalora-not-pooled",
        "llama-f32",
        lora(set_config(use_qalora=True, qalora_group_size=8)),
        ["use_qalora", "pooled"],
        "An ordinary adapter with the config fields of QA-LoRA (edited).",
    ),
    refuse(
        "bdlora-other-base",
        "llama-odd",
        bdlora(a=["q_proj"], target_modules=["q_proj"], base="llama-f32"),
        ["q_proj", "another base"],
        "Block-diagonal factors for a base of another hidden size.",
    ),
    refuse("kasa", "llama-f32", lora(kasa_config=peft.tuners.lora.KasaConfig()), ["kasa"], "KaSA."),
    refuse(
        "alora",
        "llama-f32",
        lora(alora_invocation_tokens=[5, 9]),
        ["alora"],
        "aLoRA is active only after its invocation tokens.",
    ),
    refuse(
        "arrow",
        "llama-f32",
        lora(
            set_config(
                arrow_config={
                    "gks_adapter_names": [],
                    "rng_seed": None,
                    "router_temperature": 1.0,
                    "task_adapter_names": ["task_0", "task_1"],
                    "top_k": 2,
                    "use_gks": False,
                }
            )
        ),
        ["arrow"],
        "Arrow routes between adapters; an ordinary adapter with its config field (edited).",
    ),
    refuse(
        "layer-replication",
        "llama-deep",
        lora(layer_replication=[[0, 2], [1, 2]]),
        ["layer_replication"],
        "The adapter is trained on a restacked base.",
    ),
    refuse("pissa", "llama-f32", lora(init_lora_weights="pissa"), ["pissa", "Options.RecomputeResidual"], "PiSSA, not converted."),
    refuse(
        "pissa-niter",
        "llama-f32",
        lora(init_lora_weights="pissa_niter_4"),
        ["pissa_niter_4"],
        "PiSSA by a randomised SVD, not converted.",
    ),
    refuse(
        "olora-conv1d",
        "gpt2",
        lora(init_lora_weights="olora", target_modules=["attn.c_proj"]),
        ["olora"],
        "OLoRA on a square Conv1D, which PEFT decomposes as it is stored.",
    ),
    refuse("olora", "llama-f32", lora(init_lora_weights="olora"), ["olora", "Options.RecomputeResidual"], "OLoRA, not converted."),
    refuse(
        "corda",
        "llama-f32",
        lora(
            set_config(
                init_lora_weights="corda",
                corda_config={
                    "cache_file": None,
                    "corda_method": "ipm",
                    "covariance_file": None,
                    "prune_temporary_fields": True,
                    "use_float16_for_covariance": False,
                    "verbose": False,
                },
            )
        ),
        ["corda"],
        "CorDA needs data; an ordinary adapter with its config fields (edited).",
    ),
    refuse(
        "loftq",
        "llama-f32",
        lora(set_config(init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1})),
        ["loftq"],
        "LoftQ changes the base; an ordinary adapter with its config fields (edited).",
    ),
    refuse(
        "lora-ga",
        "llama-f32",
        lora(
            set_config(
                init_lora_weights="lora_ga",
                lora_ga_config={"direction": "ArB2r", "scale": "stable", "stable_gamma": 16},
            )
        ),
        ["lora_ga"],
        "LoRA-GA needs gradients; an ordinary adapter with its config fields (edited).",
    ),
]

# Refused: layers that are not linear.

LAYERS = [
    refuse(
        "conv-grouped",
        "blocks",
        lora(target_modules=["grouped"], task_type=None),
        ["group", "grouped"],
        "A grouped convolution: PEFT's update is dense over the inputs, and the grouped weight has no place for it.",
    ),
    refuse(
        "conv-rank",
        "blocks",
        lora(set_config(r=8), target_modules=["conv2"], task_type=None),
        ["rank"],
        "The config's rank is not that of a convolution's factors (edited).",
    ),
    refuse(
        "experts-two-names",
        "mixtral",
        lora(set_config(target_parameters=["experts.gate_up_proj"]), **EXPERTS),
        ["target_parameters", "experts"],
        "Factors of two parameters of one module, of which the config names one (edited).",
    ),
    refuse(
        "experts-other-shape",
        "mixtral-square",
        lora(base="mixtral", **EXPERTS),
        ["experts"],
        "The adapter's experts have another intermediate size.",
    ),
    refuse(
        "experts-rank",
        "mixtral",
        lora(set_config(r=3), **EXPERTS),
        ["rank"],
        "The rows of lora_A are no multiple of the rank (edited).",
    ),
    refuse(
        "experts-gpt-oss-square-alone",
        "gpt-oss-square",
        lora(**GATE),
        ["square", "Options.ExpertInput", "transformers"],
        "A square parameter of gpt-oss alone: PEFT goes by a mark that transformers 5 sets and transformers 4 does not.",
    ),
    refuse(
        "experts-square-no-version",
        "mixtral-square",
        lora(set_config(peft_version=None), **GATE),
        ["square", "Options.ExpertInput"],
        "The experts' gate_up_proj is square, and the config does not say which release of PEFT made the adapter (edited).",
    ),
]

# Refused: other methods.

TARGETS = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
METHODS = [
    refuse(
        name.lower(),
        "llama-f32",
        Adapter(config),
        [name],
        f"peft_type {config.peft_type.value}.",
    )
    for name, config in {
        "AdaLoRA": peft.AdaLoraConfig(total_step=10, **TARGETS),
        "BOFT": peft.BOFTConfig(boft_block_size=4, **TARGETS),
        "IA3": peft.IA3Config(feedforward_modules=[], **TARGETS),
        "LoHa": peft.LoHaConfig(r=4, **TARGETS),
        "LoKr": peft.LoKrConfig(r=4, **TARGETS),
        "OFT": peft.OFTConfig(oft_block_size=4, r=0, **TARGETS),
        "Prompt": peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "VeRA": peft.VeraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"]),
    }.items()
]

# Refused: files and configs.


def write_pointer(directory):
    """Puts a Git LFS pointer in the place of the weights."""
    weights = directory / WEIGHTS
    size = weights.stat().st_size
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n")


FILES = [
    refuse(
        "lfs-pointer", "llama-f32", lora(), ["lfs"], "The weights file is a Git LFS pointer (edited).", write_pointer
    ),
    refuse("no-tensors", "llama-f32", lora(drop_all), ["tensor"], "A valid weights file without any tensor (edited)."),
    refuse(
        "alpha-nan",
        "llama-f32",
        lora(set_config(lora_alpha=float("nan"))),
        ["NaN"],
        "lora_alpha is NaN, as Python's json writes it (edited).",
    ),
    refuse(
        "unknown-flag",
        "llama-f32",
        lora(set_config(use_hypothetical=True)),
        ["use_hypothetical"],
        "An unknown config field that is on (edited).",
    ),
    refuse(
        "unknown-config",
        "llama-f32",
        lora(set_config(hypothetical_config={"beta": 0.5})),
        ["hypothetical_config"],
        "An unknown config field that is not null (edited).",
    ),
    refuse("missing-lora-b", "llama-f32", lora(drop("v_proj.lora_B")), ["lora_B"], "One lora_B is dropped (edited)."),
    refuse("missing-lora-a", "llama-f32", lora(drop("v_proj.lora_A")), ["lora_A"], "One lora_A is dropped (edited)."),
    refuse(
        "extra-tensor",
        "llama-f32",
        lora(add(f"{QUERY0}.lora_C.weight", torch.ones(4, 4))),
        ["lora_C"],
        "A tensor of unknown meaning (edited).",
    ),
    refuse(
        "rank-config", "llama-f32", lora(set_config(r=16)), ["rank"], "The config's rank is not the file's (edited)."
    ),
    refuse(
        "rank-pattern",
        "llama-f32",
        lora(set_config(rank_pattern={"q_proj": 2})),
        ["rank"],
        "rank_pattern disagrees with the file (edited).",
    ),
    refuse(
        "rank-factors",
        "llama-f32",
        lora(change("q_proj.lora_B", lambda b: b[:, :3])),
        ["rank"],
        "The ranks of lora_A and lora_B differ (edited).",
    ),
    refuse(
        "infinite-factor",
        "llama-f32",
        lora(change("q_proj.lora_B", lambda b: b.index_fill(0, torch.tensor([3]), float("inf")))),
        ["q_proj"],
        "Infinite values in a factor (edited).",
    ),
]

# Refused: adapter and base do not fit.

FIT = [
    refuse(
        "tied-embedding",
        "llama-tied",
        lora(target_modules=["embed_tokens", "q_proj"], lora_alpha=2),
        ["tied", "Options.Tied=untie", "Options.Tied=fold"],
        "LoRA on the embedding would change the tied head too.",
    ),
    refuse(
        "tied-head-saved",
        "llama-tied",
        lora(modules_to_save=["lm_head"]),
        ["tied", "Options.Tied=untie", "Options.Tied=fold"],
        "The adapter replaces the head, which the base ties to the embedding and does not store.",
    ),
    refuse(
        "tied-head",
        "llama-tied",
        lora(target_modules=["lm_head"]),
        ["tied", "Options.Tied=untie", "Options.Tied=fold"],
        "LoRA on the head, which the base ties to the embedding and does not store.",
    ),
    refuse(
        "wrong-base",
        "llama-bf16",
        lora(base="llama-odd"),
        ["q_proj"],
        "The adapter's base has another hidden size.",
    ),
    refuse(
        "too-many-layers",
        "llama-f32",
        lora(base="llama-deep"),
        ["layers.1"],
        "The adapter's base has two layers, this one has one.",
    ),
    refuse(
        "no-such-head",
        "llama-bf16",
        lora(model=tf.LlamaForSequenceClassification, task_type="SEQ_CLS"),
        ["score"],
        "The adapter saves a classification head that the base does not have.",
    ),
    refuse(
        "resized-vocabulary",
        "llama-bf16",
        lora(prepare=lambda model: model.resize_token_embeddings(52)),
        ["embed_tokens", "Options.GrowVocabulary"],
        "Embedding and head are saved whole because the vocabulary is resized.",
    ),
    refuse(
        "token-out-of-range",
        "llama-bf16",
        lora(set_config(trainable_token_indices=[3, 1000]), trainable_token_indices=[3, 7]),
        ["1000"],
        "A token index beyond the vocabulary (edited).",
    ),
    refuse(
        "tokens-without-indices",
        "llama-bf16",
        lora(set_config(trainable_token_indices=None), trainable_token_indices=[3, 7]),
        ["trainable_token"],
        "Rows of tokens in the file, but the config does not say which tokens (edited).",
    ),
    refuse(
        "tokens-count",
        "llama-bf16",
        lora(set_config(trainable_token_indices=[3, 7, 9]), trainable_token_indices=[3, 7]),
        ["trainable_token"],
        "Two rows in the file, three token indices in the config (edited).",
    ),
    refuse(
        "lora-bias-without-bias",
        "llama-bf16",
        lora(lora_bias=True),
        ["bias"],
        "lora_B has a bias, the base layer has none.",
    ),
]

REFUSE = VARIANTS + LAYERS + METHODS + FILES + FIT
