"""Cases by older releases of PEFT and transformers, which have other layouts or names. Each is made in an environment of its own."""

from adapters import lora, save_resaved
from case import Merge, merge

GATE = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}
EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def experts(name, base, adapter, comment, **rest):
    return merge(name, base, adapter, comment, experts={}, size=(0.01, 1.5), **rest)


def peft_0_18() -> list[Merge]:
    return [
        experts(
            "experts-0.18",
            "mixtral-stacked",
            lora(**EXPERTS),
            "lora_A reads the first dimension of an expert, which is the output of the layer.",
        ),
        experts("experts-0.18-one-by-one", "mixtral", lora(**EXPERTS), "The same, on a checkpoint of single experts."),
        experts("experts-0.18-square", "mixtral-square", lora(**EXPERTS), "A square gate_up_proj.", warn=["square"]),
        experts("experts-0.18-square-alone", "mixtral-square", lora(**GATE), "The same alone.", warn=["square", "first dimension"]),
        experts("experts-0.18-qwen", "qwen3-moe", lora(use_rslora=True, **EXPERTS), "Three experts, scale α/√r."),
        experts("experts-0.18-gpt-oss", "gpt-oss", lora(**EXPERTS), "gpt-oss has (E, in, out)."),
    ]


def peft_0_19_0() -> list[Merge]:
    return [
        experts("experts-0.19.0", "mixtral", lora(**EXPERTS), "The first dimension again."),
        experts("experts-0.19.0-square", "mixtral-square", lora(**EXPERTS), "A square gate_up_proj.", warn=["square"]),
        experts("experts-0.19.0-square-alone", "mixtral-square", lora(**GATE), "The same alone.", warn=["square", "outputs"]),
        experts(
            "experts-0.19.0-gpt-oss-square",
            "gpt-oss-square",
            lora(**EXPERTS),
            "A square gate_up_proj of gpt-oss, of which this release alone reads the second dimension.",
            warn=["square"],
        ),
    ]


def transformers_4() -> list[Merge]:
    """Adapters with a module per expert."""
    return [
        merge(
            "experts-v4",
            "mixtral",
            lora(target_modules=["w1", "w2", "w3", "gate", "q_proj"]),
            "An adapter of transformers 4 on a checkpoint with the same names.",
        ),
        merge(
            "experts-v4-stacked",
            "mixtral-stacked",
            lora(target_modules=["w1", "w2", "w3", "gate", "q_proj"], base="mixtral"),
            "The same adapter, while the checkpoint has the stacks and the names of transformers 5.",
            via="mixtral",
        ),
        merge(
            "experts-v4-qwen-stacked",
            "qwen3-moe-stacked",
            lora(target_modules=["gate_proj", "down_proj"], r=3, base="qwen3-moe-f32"),
            "The adapter leaves up_proj, a half of gate_up_proj, alone; layer 0 is dense.",
            via="qwen3-moe-f32",
        ),
    ]


def merged_linear(name, enabled, modules, comment):
    config = {"enable_lora": enabled, "fan_in_fan_out": True, "target_modules": modules, "lora_dropout": 0.0}
    return merge(name, "gpt2", lora(save=save_resaved, **config), comment, by_peft=False, size=(0.01, 1.2))


def peft_0_2() -> list[Merge]:
    """MergedLinear. The factors have two groups, whatever is enabled, and PEFT merges them only where two projections are: the
    truth is that of its forward."""
    both = ["c_attn", "c_fc"]
    return [
        merged_linear("merged-linear", [True, False, True], ["c_attn"], "Two of three projections of a Conv1D."),
        merged_linear("merged-linear-one", [False, False, True], both, "One projection, in two groups of half the rank."),
        merged_linear("merged-linear-all", [True, True, True], both, "Three projections, in two groups."),
    ]


ERAS = {
    "peft 0.2.0, transformers 5.24.0": peft_0_2,
    "peft 0.18.1, transformers 5.24.0": peft_0_18,
    "peft 0.19.0, transformers 5.5.4": peft_0_19_0,
    "peft 0.18.1, transformers 4.57.6": transformers_4,
}
