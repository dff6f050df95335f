"""The cases: adapters, a base, and the user's weights."""

from dataclasses import dataclass, field

import torch

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@dataclass
class Adapter:
    """One file. options are the network_args of sd-scripts, algorithms those of single modules.

    dtype is that of the file; LyCORIS casts every tensor to it, alpha and on_input, too. edit
    changes the file after LyCORIS has written it, as other trainers would have. extract are the
    options of LyCORIS' extraction, which then writes the file.
    """

    modules: list
    algo: str = "locon"
    rank: int = 2
    alpha: float = 1.0
    options: dict = field(default_factory=dict)
    algorithms: dict = field(default_factory=dict)
    dtype: torch.dtype | None = None
    wrapper: bool = False
    edit: callable = None
    extract: dict | None = None

    def __post_init__(self):
        self.options = {"algo": self.algo} | self.options


@dataclass
class Case:
    """One merge. same_as names the case whose file this one edits, so that the result is equal."""

    name: str
    base: torch.dtype
    adapters: list
    comment: str
    weights: list | None = None
    same_as: str = ""


LINEAR = ["to_q", "to_out"]
KERNELS = ["conv", "oblong", "line", "volume"]
SOME = ["to_out", "proj_in", "conv", "oblong"]


def on_input(modules):
    return {name: {"algo": "ia3", "train_on_input": True} for name in modules}


def set_alpha(value):
    def edit(state):
        for key in state:
            if key.endswith(".alpha"):
                state[key] = torch.full_like(state[key], value)

    return edit


def dora(algo, modules, axis, **options):
    return Adapter(
        modules,
        algo,
        alpha=1.5,
        options={"dora_wd": True, "wd_on_output": axis == "out", **options},
    )


FIXED = {"mode": "fixed", "linear_mode_param": 2, "conv_mode_param": 2}

CASES = [
    Case(
        "locon",
        BF16,
        [Adapter(["to_q", *SOME, "line", "volume"], rank=3, alpha=1.5)],
        "linear layers and convolutions of each dimension",
    ),
    Case(
        "locon-wrapper",
        F16,
        [Adapter(["to_q", "conv"], rank=3, alpha=2.0, dtype=F16, wrapper=True)],
        "the prefix lycoris_, factors in F16",
        weights=[0.7],
    ),
    Case(
        "locon-tucker",
        F32,
        [Adapter(KERNELS, rank=3, options={"use_tucker": True})],
        "lora_mid; no 1x1 kernel has it",
    ),
    Case(
        "locon-rslora",
        F32,
        [Adapter(["to_q", "conv"], rank=3, alpha=2.0, options={"rs_lora": True}, dtype=BF16)],
        "alpha has the factor of rsLoRA and is rounded to BF16; the loader divides it by the rank",
    ),
    Case(
        "loha",
        F32,
        [Adapter(["to_q", *SOME, "line"], "loha", rank=3, alpha=1.5)],
        "w_b of a convolution has n·K columns",
    ),
    Case(
        "loha-half",
        BF16,
        [Adapter(["to_out", "conv"], "loha", dtype=BF16)],
        "factors in BF16",
        weights=[-1.5],
    ),
    Case(
        "loha-tucker",
        F16,
        [Adapter(KERNELS, "loha", alpha=0.75, options={"use_tucker": True})],
        "cores; w_a and w_b have the rank first",
    ),
    Case(
        "lokr",
        BF16,
        [Adapter(["to_q", *SOME], "lokr", alpha=0.75, options={"factor": 2})],
        "w1 is full, and w2 where the rank is too large for it",
    ),
    Case(
        "lokr-weight",
        F32,
        [Adapter(["to_q", "conv"], "lokr", alpha=3.0, options={"factor": 2}, dtype=F16)],
        "factors in F16",
        weights=[0.3],
    ),
    Case(
        "lokr-full",
        F16,
        [Adapter(["to_q", "proj_in", "conv"], "lokr", rank=4, options={"full_matrix": True})],
        "w1 and w2 are full: the scale is 1",
    ),
    Case(
        "lokr-full-alpha",
        F16,
        [
            Adapter(
                ["to_q", "proj_in", "conv"],
                "lokr",
                rank=4,
                options={"full_matrix": True},
                edit=set_alpha(0.03125),
            )
        ],
        "the same with another alpha, as other trainers write it: the scale stays 1",
        same_as="lokr-full",
    ),
    Case(
        "lokr-both",
        F32,
        [Adapter(["ff"], "lokr", alpha=0.5, options={"decompose_both": True})],
        "w1 and w2 are products",
    ),
    Case(
        "lokr-rank1",
        BF16,
        [Adapter(["to_q", "conv"], "lokr", 1, 0.25, {"decompose_both": True})],
        "products of rank 1 have a scale, too",
    ),
    Case(
        "lokr-tucker",
        F32,
        [Adapter(["conv", "volume"], "lokr", options={"factor": 2, "use_tucker": True})],
        "a core; w2_a has the rank first",
    ),
    Case(
        "lokr-unbalanced",
        F16,
        [
            Adapter(
                ["to_q"],
                "lokr",
                rank=3,
                options={"factor": 2, "decompose_both": True, "unbalanced_factorization": True},
            )
        ],
        "w1 is a product and w2 is full",
    ),
    Case(
        "full",
        BF16,
        [Adapter(["to_out", "proj_in", "oblong", "volume"], "full")],
        "differences of weights and biases",
    ),
    Case(
        "full-half",
        F16,
        [Adapter(["to_q", "to_out", "oblong"], "full", dtype=BF16)],
        "differences in BF16, for a base in F16",
        weights=[0.6],
    ),
    Case(
        "norms",
        F32,
        [Adapter(["norm", "group", "to_q"], "loha", options={"train_norm": True})],
        "w_norm and b_norm of a layer norm and a group norm",
        weights=[1.25],
    ),
    Case(
        "ia3-output",
        F32,
        [Adapter(["to_q", *SOME, "volume"], "ia3")],
        "one factor for each output; the bias stays",
    ),
    Case(
        "ia3-input",
        BF16,
        [Adapter(["to_q", *SOME, "line"], "ia3", algorithms=on_input(["to_q", *SOME, "line"]))],
        "one factor for each input, which all columns of its kernel share",
    ),
    Case(
        "ia3-half",
        F16,
        [
            Adapter(
                ["to_out", "proj_in", "oblong"],
                "ia3",
                algorithms=on_input(["to_out", "oblong"]),
                dtype=F16,
            )
        ],
        "both axes in one file; on_input is in F16",
        weights=[0.8],
    ),
    Case("dora-out", BF16, [dora("locon", ["to_q", "conv"], "out")], "one magnitude an output"),
    Case("dora-in", F32, [dora("locon", ["to_q", "conv"], "in")], "one magnitude an input"),
    Case(
        "dora-in-kernels",
        F16,
        [dora("locon", ["proj_in", "oblong", "line", "volume"], "in", use_tucker=True)],
        "LoCon with lora_mid and kernels of each dimension",
    ),
    Case("doha-out", F16, [dora("loha", ["to_out", "oblong"], "out")], "LoHa with DoRA"),
    Case("doha-in", BF16, [dora("loha", ["to_out", "conv"], "in")], "LoHa with DoRA"),
    Case(
        "doha-out-tucker",
        F32,
        [dora("loha", ["oblong", "volume"], "out", use_tucker=True)],
        "LoHa with cores and DoRA",
    ),
    Case("dokr-out", F32, [dora("lokr", ["to_q", "conv"], "out", factor=2)], "LoKr with DoRA"),
    Case(
        "dokr-in",
        F16,
        [dora("lokr", ["to_out", "conv"], "in", factor=2, use_tucker=True)],
        "LoKr with DoRA, and with a core",
    ),
    Case(
        "extracted",
        BF16,
        [
            Adapter(
                ["to_q", "proj_in", "conv"],
                alpha=2.0,
                options={"use_tucker": True},
                extract=FIXED,
            )
        ],
        "extracted, with lora_mid; alpha has the shape [1]",
    ),
    Case(
        "extracted-full",
        F32,
        [
            Adapter(
                ["to_out", "norm", "group", "oblong"],
                "full",
                options={"train_norm": True},
                extract={"mode": "full"},
            )
        ],
        "extracted differences in F16",
        weights=[0.5],
    ),
    Case(
        "mixed",
        BF16,
        [
            Adapter(
                ["to_q", "to_out", "proj_in", "oblong", "norm", "group"],
                options={"train_norm": True},
                algorithms={
                    "to_q": {"algo": "lokr", "factor": 4, "dim": 1},
                    "to_out": {"algo": "loha", "alpha": 3.0},
                    "proj_in": {"algo": "ia3"},
                    "oblong": {"algo": "full"},
                },
            )
        ],
        "a file with several methods, as a preset makes it",
        weights=[0.9],
    ),
    Case(
        "stacked",
        F32,
        [
            Adapter(["to_q", "oblong"], alpha=1.5),
            Adapter(["to_q", "oblong"], "lokr", 1, 0.5, dtype=BF16, wrapper=True),
            Adapter(["to_q", "oblong"], "loha", dtype=F16),
        ],
        "three files for the same modules",
        weights=[0.5, 1.0, -0.75],
    ),
]


@dataclass
class Refused:
    """A file that nothing merges. says is a word of the message."""

    name: str
    adapter: Adapter
    says: str


REFUSED = [
    Refused("oft", Adapter(LINEAR, "diag-oft", 4), "OFT"),
    Refused("oft-rescaled", Adapter(["to_q"], "diag-oft", 4, options={"rescaled": True}), "OFT"),
    Refused("boft", Adapter(["to_q"], "boft", 4), "BOFT"),
    Refused("glora", Adapter(LINEAR, "glora"), "GLoRA"),
    Refused("glora-conv", Adapter(["conv"], "glora"), "GLoRA"),
    Refused("sparse", Adapter(["to_q", "conv"], extract=FIXED | {"use_bias": True}), "sparse"),
    Refused("tlora", Adapter(["to_q"], "tlora"), "T-LoRA"),
]
