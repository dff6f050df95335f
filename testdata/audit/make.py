"""Writes bases, adapters and merges that are what they claim to be: by PEFT, by mlx-lm, by sd-scripts."""

import json
import os
import re
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEFT = HERE.parent / "peft"
ENVIRONMENT = {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
sys.dont_write_bytecode = True
sys.path.append(str(PEFT))

import peft  # noqa: E402
import torch  # noqa: E402
import transformers as tf  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.utils import logging  # noqa: E402

from adapters import apply_edits, cast, train  # noqa: E402
from bases import BASES, Base, read_checkpoint  # noqa: E402
from rounding import BF16, F16, F32, candidates, differing, nearest  # noqa: E402
from ways import by_kohya, by_mlx, by_mlx_model, by_peft, layers_by_flat_name, layers_of  # noqa: E402

WORDS = {BF16: "BF16", F16: "F16", F32: "F32"}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(layers):
    """q, k, v and o are square; gate and up have one shape, and so have embedding and head."""
    return tf.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        vocab_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )


OURS = {
    "llama-bf16-wide": Base(llama(2), tf.LlamaForCausalLM, BF16),
    "llama-f16-wide": Base(llama(1), tf.LlamaForCausalLM, F16),
    "llama-f32-wide": Base(llama(1), tf.LlamaForCausalLM, F32),
}
BASES.update(OURS)


@dataclass
class Trained:
    """An adapter: base, standard deviation of the training, config, edits of the written files."""

    base: str
    std: float
    config: dict
    edits: tuple = ()

    def write(self, directory: Path):
        torch.manual_seed(0)
        model = BASES[self.base].model.from_pretrained(f"bases/{self.base}", dtype="auto")
        config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        peft_model = peft.get_peft_model(model, peft.LoraConfig(**config | self.config))
        train(peft_model, directory.name, self.std)
        peft_model.save_pretrained(directory)
        (directory / "README.md").unlink()
        apply_edits(directory, self.edits)


PLAIN = {"target_modules": LINEARS, "r": 8, "lora_alpha": 12}
WIDE, HALF, SINGLE = OURS
ADAPTERS = {
    "plain": Trained(WIDE, 0.008, PLAIN),
    "other": Trained(WIDE, 0.008, PLAIN, [cast(BF16)]),
    "few": Trained(WIDE, 0.012, {}),
    "few-too": Trained(WIDE, 0.012, {}),
    "few-bf16": Trained(WIDE, 0.012, {}, [cast(BF16)]),
    "rslora": Trained(WIDE, 0.006, {"use_rslora": True, "r": 8, "lora_alpha": 4}),
    "rslora-one": Trained(
        WIDE, 0.006, {"use_rslora": True, "r": 8, "target_modules": ["q_proj"], "layers_to_transform": [1]}
    ),
    "one": Trained(WIDE, 0.012, {"target_modules": ["q_proj"], "layers_to_transform": [0]}),
    "faint": Trained(WIDE, 0.00008, {"target_modules": ["q_proj"]}),
    "dora": Trained(WIDE, 0.012, {"use_dora": True}),
    "half": Trained(HALF, 0.012, {}),
    "single": Trained(SINGLE, 0.012, {}),
}


@dataclass
class Case:
    """A right merge. way is how its rounding is named; tied, if the adapter changes one of two tied ends."""

    name: str
    base: str
    adapters: list
    way: str
    make: object
    comment: str
    weights: list | None = None
    options: dict = field(default_factory=dict)


def ours(name, base, adapters, way, make, comment, **rest):
    return Case(name, f"audit/bases/{base}", [f"audit/adapters/{a}" for a in adapters], way, make, comment, **rest)


def merged_by(function, **options):
    """A function of base, adapters and weights of a case."""
    if function is by_peft:
        return lambda base, adapters, weights: by_peft(base, adapters, weights, **options)
    return lambda base, adapters, weights: function(base, adapters[0], **options)


DEFAULT = merged_by(by_peft)
SAFE = merged_by(by_peft, safe=True)
RAW = merged_by(by_peft, autocast=False)
MLX = merged_by(by_mlx)


def kohya(merge, save=None):
    return merged_by(by_kohya, merge_dtype=merge, save_dtype=save)


CASES = [
    ours("plain-default", WIDE, ["plain"], "float32", DEFAULT, "Every linear layer."),
    ours("few-default", WIDE, ["few"], "float32", DEFAULT, "q_proj and down_proj."),
    ours("few-safe", WIDE, ["few"], "delta_rounded", SAFE, "safe_merge=True."),
    ours("few-raw", WIDE, ["few"], "factors_rounded", RAW, "autocast_adapter_dtype=False: the factors become BF16."),
    ours(
        "few-detour",
        WIDE,
        ["few"],
        "float32:f16",
        merged_by(by_peft, dtype=F16, saved=BF16),
        "Loaded and merged in F16, saved in BF16.",
    ),
    ours(
        "few-saved-f32",
        WIDE,
        ["few"],
        "float32:direct",
        merged_by(by_peft, dtype=F32),
        "Loaded, merged and saved in F32.",
    ),
    ours("few-mlx", WIDE, ["few"], "delta_rounded", MLX, "mlx-lm's fuse."),
    ours(
        "few-kohya-float",
        WIDE,
        ["few"],
        "float32",
        kohya(F32, BF16),
        "sd-scripts: --precision float --save_precision bf16.",
    ),
    ours("few-kohya-bf16", WIDE, ["few"], "product_rounded", kohya(BF16), "sd-scripts: --precision bf16."),
    ours(
        "few-kohya-fp16",
        WIDE,
        ["few"],
        "float32:direct",
        kohya(F32, F16),
        "sd-scripts: --precision float --save_precision fp16.",
    ),
    ours("few-bf16-default", WIDE, ["few-bf16"], "float32", DEFAULT, "Factors in BF16."),
    ours("few-bf16-raw", WIDE, ["few-bf16"], "factors_rounded", RAW, "Factors in BF16, autocast_adapter_dtype=False."),
    ours("few-bf16-mlx", WIDE, ["few-bf16"], "scaled_b", MLX, "Factors in BF16, mlx-lm's fuse."),
    ours(
        "few-cast-f16", WIDE, ["few"], "float32:after", merged_by(by_peft, saved=F16), "Merged in BF16, saved in F16."
    ),
    ours(
        "few-loaded-f16",
        WIDE,
        ["few"],
        "float32:before",
        merged_by(by_peft, dtype=F16),
        "Loaded, merged and saved in F16.",
    ),
    ours("rslora-default", WIDE, ["rslora"], "float32", DEFAULT, "Scale α/√r."),
    ours("rslora-safe", WIDE, ["rslora"], "delta_rounded", SAFE, "Scale α/√r, safe_merge=True."),
    ours("one-default", WIDE, ["one"], "float32", DEFAULT, "One layer alone."),
    ours(
        "faint-default", WIDE, ["faint"], "float32", DEFAULT, "An update so small that most weights keep their value."
    ),
    ours("faint-safe", WIDE, ["faint"], "delta_rounded", SAFE, "The same, safe_merge=True."),
    ours("wide-dora-default", WIDE, ["dora"], "float32", DEFAULT, "DoRA."),
    ours("two-default", WIDE, ["few", "few-too"], "float32", DEFAULT, "Two adapters, one after the other."),
    ours("two-safe", WIDE, ["few", "few-too"], "delta_rounded", SAFE, "Two adapters, each added with safe_merge=True."),
    ours(
        "two-weighted",
        WIDE,
        ["few", "few-too"],
        "float32",
        DEFAULT,
        "Two adapters with weights, one after the other.",
        weights=[0.7, 0.3],
    ),
    ours(
        "two-joined",
        WIDE,
        ["few", "few-too"],
        "factors_rounded:joined",
        merged_by(by_peft, join=True),
        "add_weighted_adapter with cat: one sum.",
        weights=[0.7, 0.3],
    ),
    ours("half-default", HALF, ["half"], "float32", DEFAULT, "F16."),
    ours("half-safe", HALF, ["half"], "delta_rounded", SAFE, "F16, safe_merge=True."),
    ours("half-raw", HALF, ["half"], "factors_rounded", RAW, "F16, autocast_adapter_dtype=False."),
    ours("half-mlx", HALF, ["half"], "delta_rounded", MLX, "F16, mlx-lm's fuse."),
    ours(
        "half-kohya-float", HALF, ["half"], "float32", kohya(F32, F16), "F16, --precision float --save_precision fp16."
    ),
    ours("half-kohya-fp16", HALF, ["half"], "product_rounded", kohya(F16), "F16, --precision fp16."),
    ours(
        "half-kohya-bf16",
        HALF,
        ["half"],
        "float32:direct",
        kohya(F32, BF16),
        "F16, --precision float --save_precision bf16.",
    ),
    ours("single-default", SINGLE, ["single"], "float32", DEFAULT, "F32."),
    ours("single-safe", SINGLE, ["single"], "float32", SAFE, "F32: safe_merge=True changes nothing."),
    ours("single-mlx", SINGLE, ["single"], "float32", MLX, "F32, mlx-lm's fuse: it scales B before the product."),
    ours("single-kohya-float", SINGLE, ["single"], "float32", kohya(F32), "F32, --precision float."),
    ours(
        "single-kohya-bf16",
        SINGLE,
        ["single"],
        "float32:direct",
        kohya(F32, BF16),
        "F32, --precision float --save_precision bf16.",
    ),
]

for name, way in [
    ("llama", "delta_rounded"),
    ("gemma", "delta_rounded"),
    ("dora", "float32"),
    ("qwen3_moe", "delta_rounded"),
]:
    CASES.append(
        Case(
            f"mlx-{name}",
            f"mlx/{name}/base",
            [f"mlx/{name}/adapter"],
            way,
            merged_by(by_mlx_model),
            "load_adapters and fuse of mlx-lm.",
        )
    )
FLUX = "diffusion/bases/flux-bfl.safetensors", ["diffusion/cases/flux-kohya-blocks/adapter.safetensors"]
CASES += [
    Case("flux-float", *FLUX, "float32", kohya(F32, BF16), "sd-scripts: --precision float --save_precision bf16."),
    Case("flux-bf16", *FLUX, "product_rounded", kohya(BF16), "sd-scripts: --precision bf16."),
]

# Cases of ../peft merged in the dtype of their base: default, safe_merge=True, autocast_adapter_dtype=False.
AGAIN = """
    adapter-bf16 adapter-f16 alpha-fraction bert bias-all bias-lora-only classifier conv-all conv2d
    dora dora-adapter-bf16 dora-embedding dora-f16-patterns dora-gpt2 embedding experts experts-gpt-oss
    experts-square f16 gpt2-conv1d head-saved-f32 lm-head lora-bias odd-shapes patterns-regex
    rslora-rank-pattern sharded t5 tied-embedding-fold tied-head-fold tied-head-saved-untie
    tied-linears tokens-list trunk-adapter two-adapters untrained
""".split()
TWICE = {"experts", "experts-gpt-oss", "experts-square"}  # PEFT rounds Δ of target_parameters in every mode

# PEFT adds to the weight in place, which changes both ends of a tied model. The adapter changes one of them only.
LEAKS = ["tied-embedding-untie", "tied-head-untie"]


def again(name):
    case = json.loads((PEFT / "merge" / name / "case.json").read_text())
    for mode, way, options in [
        ("default", "float32", {}),
        ("safe", "delta_rounded", {"safe": True}),
        ("raw", "factors_rounded", {"autocast": False}),
    ]:
        if name in TWICE and mode == "default":
            way = "delta_rounded"
        if BASES[case["base"]].dtype == F32 or "dora" in name and mode == "safe":
            way = "float32"
        model = tf.LlamaModel if name == "trunk-adapter" else None
        yield Case(
            f"{name}-{mode}",
            f"peft/bases/{case['base']}",
            [f"peft/merge/{name}/{a}" for a in case["adapters"]],
            way,
            merged_by(by_peft, model=model, **options),
            case["comment"],
            weights=case["weights"] if len(case["adapters"]) > 1 else None,
            options={} if name in LEAKS else case.get("options", {}),
        )


def describe(case: Case) -> dict:
    """Merges, stores the tensors that differ from the base, and counts what each way of rounding explains."""
    root = HERE.parent
    base, adapters = root / case.base, [root / a for a in case.adapters]
    tensors, config = case.make(base, adapters, case.weights)
    original = load_file(base) if base.is_file() else read_checkpoint(base)
    if case.name.startswith("trunk-adapter"):
        tensors = {"model." + name: t for name, t in tensors.items()} | {"lm_head.weight": original["lm_head.weight"]}
    assert not (gone := original.keys() - tensors.keys()), gone
    (dtype,) = {t.dtype for t in original.values()}
    (saved,) = {t.dtype for t in tensors.values()}
    rest = {name: t.to(saved) for name, t in original.items()}
    changed = {
        n: t.contiguous()
        for n, t in tensors.items()
        if n not in rest or t.shape != rest[n].shape or not torch.equal(t, rest[n])
    }
    entry = {"name": case.name, "base": case.base, "adapters": case.adapters}
    if case.weights:
        entry["weights"] = case.weights
    if case.options:
        entry["options"] = case.options
    entry |= {"comment": case.comment, "verdict": "as_claimed", "merged": f"audit/{store(case, changed)}"}
    if saved != dtype:
        entry["cast"] = WORDS[saved]
    if (
        config
        and base.is_dir()
        and config.get("tie_word_embeddings")
        != json.loads((base / "config.json").read_text()).get("tie_word_embeddings", config.get("tie_word_embeddings"))
    ):
        entry["config"] = {"tie_word_embeddings": config["tie_word_embeddings"]}
    entry["tensors"] = tell(case, original, changed, saved)
    entry["rounding"] = common(
        [t["rounding"] for t in entry["tensors"].values() if t["rounding"] != ["replaced"]] or [[case.way]]
    )
    if case.name.rpartition("-")[0] in LEAKS:
        entry |= {"verdict": "not_as_claimed", "defect": "tied"}
        del entry["rounding"], entry["tensors"]
    return entry


STORED: dict[bytes, str] = {}


def store(case, changed) -> str:
    """Writes the changed tensors; cases with the same tensors share a file."""
    path = Path("merged") / f"{case.name}.safetensors"
    assert not path.exists(), case.name
    save_file(changed, path)
    content = path.read_bytes() + json.dumps([case.base]).encode()
    if content in STORED:
        path.unlink()
    return STORED.setdefault(content, str(path))


def tell(case, original, changed, saved) -> dict[str, dict]:
    """For every changed tensor the elements that each way of rounding gets wrong, and the ways that can be named."""
    layers = collect(case) if case.base.startswith(("audit/", "diffusion/")) else {}
    truth = exact(case)
    keys = adapter_keys(case)
    told = {}
    for name, got in sorted(changed.items()):
        if any(same(key, name) for key in keys):
            told[name] = {"elements": got.numel(), "rounding": ["replaced"]}
            continue
        w = original.get(name)
        ways = {}
        if name in layers or case.way.endswith(":f16"):
            ways = by_layers(w, layers.get(name, []), saved)
        elif name in truth:
            ways = by_truth(w, truth[name], saved)
        counts = {way: differing(got, t) for way, t in ways.items()}
        embedding = any(
            same(key.replace(".lora_embedding_A", ".weight"), name) for key in keys if "lora_embedding_A" in key
        )
        told[name] = {
            "elements": got.numel(),
            "rounding": admissible(way_of(case, got, embedding), counts, saved),
            "differ": counts,
        }
    return told


def adapter_keys(case) -> set[str]:
    """The names in the adapters' files, without prefix; LoRA on an embedding and its base weight are one tensor."""
    keys = set()
    for adapter in case.adapters:
        file = HERE.parent / adapter / "adapter_model.safetensors"
        for key in load_file(file) if file.exists() else []:
            if not key.endswith(".base_layer.weight"):
                keys.add(
                    key.removeprefix("base_model.model.")
                    .replace(".base_layer.bias", ".bias")
                    .replace(".token_adapter.trainable_tokens_delta", ".weight")
                )
    return keys


def same(key, name) -> bool:
    return key.removeprefix("model.") == name.removeprefix("model.")


def way_of(case, got, embedding) -> str:
    """The way of one tensor. PEFT keeps the factors of embeddings in the dtype of the base, and adds to biases at once."""
    if got.ndim == 1:
        return "delta_rounded" if case.way == "factors_rounded" else "float32"
    if embedding and case.way == "float32" and got.dtype != F32 and "dora" not in case.name:
        return "delta_rounded"
    return case.way


def collect(case) -> dict[str, list]:
    """(s, B, A) of every adapter with its weight, by tensor. DoRA has none here."""
    layers: dict[str, list] = {}
    for adapter, weight in zip(case.adapters, case.weights or [1.0] * len(case.adapters)):
        directory = HERE.parent / adapter
        if directory.is_file():
            return {
                name: [layer]
                for name, layer in layers_by_flat_name(directory, load_file(HERE.parent / case.base)).items()
            }
        if json.loads((directory / "adapter_config.json").read_text())["use_dora"]:
            continue
        for name, (s, b, a) in layers_of(directory).items():
            layers.setdefault(name, []).append((s * weight, b, a))
    return layers


def exact(case) -> dict[str, torch.Tensor]:
    """What PEFT merges in float64: from ../peft, or computed here."""
    root = HERE.parent
    if case.base.startswith("peft/"):
        return load_file((root / case.adapters[0]).parent / "truth.safetensors")
    if case.base.startswith("mlx/"):
        return load_file(root / case.base / "../truth.safetensors")  # rounded once
    if case.weights or len(case.adapters) > 1 or case.base.startswith("diffusion/"):
        return {}
    return by_peft(root / case.base, [root / case.adapters[0]], dtype=torch.float64, autocast=False)[0]


def by_layers(w, layers, saved):
    """The ways to add plain layers, with the dtype that the merge is saved in."""
    ways = candidates(w, layers, saved)
    if len(layers) > 1:
        joined = [(1.0, torch.cat([b for _, b, _ in layers], 1), torch.cat([a * s for s, _, a in layers]))]
        ways |= {f"{way}:joined": t for way, t in candidates(w, joined, saved).items()}
    return ways


def by_truth(w, truth, saved):
    ways = {"exact": nearest(truth.double(), saved)}
    if w is not None and w.shape == truth.shape and w.dtype == saved and truth.dtype == torch.float64:
        delta = nearest(truth - w.double(), saved)
        ways["delta_rounded"] = nearest(w.double() + delta.double(), saved)
    return ways


def admissible(way, counts, saved) -> list[str]:
    """The way that made a tensor, and the others that get every element right.

    float32 stands for every order of a float32 sum: where the values are those of the exact result, it explains them,
    and in F32 rounding Δ first is one of these orders.
    """
    found = {way} | {name for name, differ in counts.items() if not differ}
    found |= {"float32" + name.removeprefix("exact") for name in found if name.startswith("exact")}
    if saved == F32:
        found |= {"delta_rounded" + name.removeprefix("float32") for name in found if name.startswith("float32")}
    return sorted(found, key=lambda name: (name != way, name))


def common(lists) -> list[str]:
    """The ways that explain every tensor; none does where a tool rounds its tensors in several ways."""
    return [way for way in lists[0] if all(way in each for each in lists)] or ["mixed"]


def write_cases(producer, entries):
    """Each case with one line per tensor."""
    text = json.dumps({"producer": producer, "cases": entries}, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    text = re.sub(
        r'\{\s+("elements":[^{}]*(\{[^{}]*\})?)\s+\}',
        lambda m: "{" + re.sub(r"\s+", " ", m[1]).replace("{ ", "{").replace(" }", "}") + "}",
        text,
    )
    Path("cases.json").write_text(text + "\n")


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    os.chdir(HERE)
    for directory in ("bases", "adapters", "merged"):
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
    for name, base in OURS.items():
        base.write(Path("bases") / name)
    for name, adapter in ADAPTERS.items():
        adapter.write(Path("adapters") / name)
    entries = []
    for case in CASES + [c for name in AGAIN + LEAKS for c in again(name)]:
        print(case.name, flush=True)
        entries.append(describe(case))
    producer = f"peft {peft.__version__}, transformers {tf.__version__}, torch {torch.__version__.partition('+')[0]}, mlx-lm 0.32.2"
    write_cases(producer, entries)


if __name__ == "__main__":
    main()
