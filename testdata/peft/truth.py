"""Merged values in float64: by PEFT itself, by the plain formula, and exactly."""

import json
import re
import tempfile
import warnings
from fractions import Fraction
from math import sqrt
from pathlib import Path
from types import SimpleNamespace

import peft
import torch
from peft.tuners.lora import LoraLayer

from adapters import CONFIG, load_weights
from bases import BASES, read_checkpoint, stack_experts

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def read_double(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in read_checkpoint(directory).items()}


def find(name: str, known) -> str | None:
    """The checkpoint's name of a parameter: with or without the trunk's prefix."""
    names = {name}
    for prefix in ("model.", "transformer."):
        names |= {prefix + name, name.removeprefix(prefix)}
    found = names & set(known)
    assert len(found) <= 1, f"{name}: {found}"
    return found.pop() if found else None


def by_peft(base: str, model_class, adapters: list[Path], weights: list[float]) -> dict[str, torch.Tensor]:
    """Merges with PEFT in float64; tensors under the checkpoint's names."""
    original = read_double(Path("bases") / base)
    model = (model_class or BASES[base].model).from_pretrained(f"bases/{base}", dtype=torch.float64)
    names = checkpoint_names(model, original)
    for name, tensor in model.state_dict().items():
        if name in names:
            assert torch.equal(tensor, original[names[name]]), f"{name} is not loaded exactly"

    peft_model = None
    for index, directory in enumerate(adapters):
        adapter = f"adapter{index}"
        if peft_model is None:
            peft_model = load_first(model, directory, adapter)
        else:
            peft_model.load_adapter(directory, adapter, autocast_adapter_dtype=False)
        check_loaded(peft_model, adapter, directory)
        scale(peft_model, adapter, weights[index])
    peft_model.base_model.set_adapter([f"adapter{i}" for i in range(len(adapters))])
    merged = peft_model.merge_and_unload().state_dict()
    return {names[name]: tensor for name, tensor in merged.items() if name in names}


def by_peft_single(base: str, adapter: Path) -> dict[str, torch.Tensor]:
    """Merges with PEFT in F32, for methods that PEFT computes in no other type; tensors under the checkpoint's names."""
    model = BASES[base].model.from_pretrained(f"bases/{base}", dtype=torch.float32)
    names = checkpoint_names(model, read_checkpoint(Path("bases") / base))
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return {names[name]: tensor for name, tensor in merged.items() if name in names}


def by_peft_saved(base: str, adapters: list[Path], weights: list[float]) -> dict[str, torch.Tensor]:
    """Merges with PEFT in float64 and saves, for models whose tensors have other names in memory than on disk."""
    assert weights == [1.0] and len(adapters) == 1
    model = BASES[base].model.from_pretrained(f"bases/{base}", dtype=torch.float64)
    peft_model = load_first(model, adapters[0], "adapter0")
    check_loaded(peft_model, "adapter0", adapters[0])
    with tempfile.TemporaryDirectory() as directory:
        peft_model.merge_and_unload().save_pretrained(directory)
        merged = read_checkpoint(Path(directory))
    original = read_double(Path("bases") / base)
    if merged.keys() != original.keys():
        BASES[base].edit(merged, {})
    assert merged.keys() == original.keys(), merged.keys() ^ original.keys()
    return merged


def load_first(model, directory, adapter):
    with warnings.catch_warnings(record=True) as caught:
        peft_model = peft.PeftModel.from_pretrained(model, directory, adapter, autocast_adapter_dtype=False)
    assert not any("missing adapter keys" in str(w.message) for w in caught), caught
    return peft_model


def check_loaded(peft_model, adapter: str, directory: Path):
    """Every tensor of the file is in the model with its exact value, and the model has no other."""
    saved = load_weights(directory)
    embedding = any(name.endswith(".base_layer.weight") for name in saved)
    loaded = peft.get_peft_model_state_dict(peft_model, adapter_name=adapter, save_embedding_layers=embedding)
    assert set(saved) == set(loaded), f"{directory}: {set(saved) ^ set(loaded)}"
    for name, tensor in saved.items():
        assert loaded[name].dtype == torch.float64 and torch.equal(loaded[name], tensor.double()), name


def scale(peft_model, adapter: str, weight: float):
    for module in peft_model.modules():
        if isinstance(module, LoraLayer) and adapter in module.scaling:
            module.scaling[adapter] *= weight


def checkpoint_names(model, known) -> dict[str, str]:
    """Maps the model's tensor names to the checkpoint's, where it has them."""
    names = {name: found for name in model.state_dict() if (found := find(name, known))}
    absent = [name for name in known if name not in names.values()]
    assert all(name == "lm_head.weight" or name.endswith(".attn.bias") for name in absent), absent
    return names


# The plain formula.


def by_experts(base: str, directory: Path, slowest=False, version=None) -> dict[str, torch.Tensor]:
    """W0[e] + s·B[e]·A[e], or its transpose, for the parameters of target_parameters and for the experts one by one."""
    config = json.loads((directory / CONFIG).read_text())
    tensors = {clean(k): t.double() for k, t in load_weights(directory).items()}
    original = read_double(Path("bases") / base)
    stacked = dict(original)
    stack_experts(stacked)
    version = tuple(int(n) for n in (version or config["peft_version"]).split(".")[:3])
    model_type = json.loads((Path("bases") / base / "config.json").read_text())["model_type"]
    transposed = model_type == "gpt_oss"
    if version < (0, 19, 0):
        turn_square = True
    elif version == (0, 19, 0):
        turn_square = not transposed
    else:
        turn_square = transposed
    order = ["gate_up_proj", "down_proj", "weight"]
    for name in [n for n in tensors if n.endswith(".lora_A.weight")]:
        path = name.removesuffix(".lora_A.weight")
        module = path
        while module.endswith(".base_layer"):
            module = module.removesuffix(".base_layer")
        nested = path.count(".base_layer")
        names = sorted(
            (p.rpartition(".")[2] for p in config["target_parameters"] if module.endswith(p.rpartition(".")[0])),
            key=order.index,
        )
        parameter = f"{module}.{names[len(names) - 1 - nested]}"
        w, a, b = stacked[parameter], tensors[name], tensors[f"{path}.lora_B.weight"]
        rank = pattern_value(config.get("rank_pattern"), parameter, config["r"])
        alpha = pattern_value(config.get("alpha_pattern"), parameter, config["lora_alpha"])
        s = alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank
        if w.ndim == 2:
            stacked[parameter] = w + s * (b @ a)
            continue
        experts = w.shape[0]
        a = a.reshape(experts, rank, a.shape[1])
        b = b.reshape(-1, experts, rank).permute(1, 0, 2) if slowest else b.reshape(-1, rank, experts).permute(2, 0, 1)
        delta = s * torch.bmm(b, a)
        square = w.shape[1] == w.shape[2]
        if turn_square if square else delta.shape != w.shape:
            delta = delta.transpose(1, 2)
        stacked[parameter] = w + delta
    return like(original, stacked)


def like(original, stacked) -> dict[str, torch.Tensor]:
    """The tensors of a merged model under the names of its checkpoint, experts one by one where it has them so."""
    merged = {}
    for name, tensor in original.items():
        newer = name.replace(".block_sparse_moe.", ".mlp.")
        if newer in stacked:
            merged[name] = stacked[newer]
            continue
        module, _, rest = newer.partition(".experts.")
        expert, part, _ = rest.split(".")
        both = stacked[f"{module}.experts.{'down_proj' if part in ('w2', 'down_proj') else 'gate_up_proj'}"][int(expert)]
        rows = tensor.shape[0]
        merged[name] = both[rows:] if part in ("w3", "up_proj") else both[:rows]
    return {name: t.contiguous() for name, t in merged.items() if not torch.equal(t, original[name])}


def clean(key: str) -> str:
    """A tensor's name without wrappers, adapter name and PEFT's prefix."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    key = key.replace(".modules_to_save.default.", ".").replace(".default.", ".")
    key = key.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
    return key.removeprefix("base_model.model.")


def pattern_value(pattern: dict, module: str, default):
    for key, value in (pattern or {}).items():
        if re.match(rf"^(.*\.)?({key})$", module):
            return value
    return default


def scaling(config: dict, module: str, rank: int) -> float:
    alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    assert rank == pattern_value(config.get("rank_pattern"), module, config.get("r", 8)), module
    return alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank


def by_formula(base: str, adapters: list[Path], weights: list[float], add=None, twice=False, tied=None) -> dict[str, torch.Tensor]:
    """W0 + Σ weight·s·B·A for the targeted tensors, and the tensors that replace the base's."""
    add = add or (lambda w, s, b, a: w + s * (b @ a))

    def rescale(tensors, module, found, dim):
        """DoRA: m·V/‖V‖, the norm over a dimension of the base's tensor."""
        if (m := tensors.get(f"{module}.lora_magnitude_vector")) is not None:
            v = merged[found]
            flat = v.flatten(1)
            merged[found] = (m.flatten().unsqueeze(dim) * flat / flat.norm(dim=dim, keepdim=True)).reshape(v.shape)

    original = read_double(Path("bases") / base)
    if tied == "untie":
        original["lm_head.weight"] = original[embedding_name(original)]
    conv1d = json.loads((Path("bases") / base / "config.json").read_text())["model_type"] == "gpt2"
    merged = {}

    def target(name):
        found = embedding_name(original) if tied == "fold" and name == "lm_head.weight" else find(name, original)
        assert found, f"{name} is not in the base"
        merged.setdefault(found, original[found])
        return found

    for directory, weight in zip(adapters, weights):
        config = json.loads((directory / CONFIG).read_text())
        tensors = {clean(k): t.double() for k, t in load_weights(directory).items()}
        for name, b in sorted(tensors.items()):
            module, _, tail = name.rpartition(".lora_")
            if tail == "B.weight":
                a = tensors.pop(f"{module}.lora_A.weight")
                found = target(weight_name(module, original))
                if config.get("enable_lora"):
                    s = config["lora_alpha"] / config["r"] * weight
                else:
                    s = scaling(config, module, a.shape[0]) * weight
                if twice and module.endswith(".base_layer.out_proj"):
                    s *= 2
                a, b = expand(config, a, b, original[found].shape[0 if conv1d else 1])
                a, b = (b.T, a.T) if conv1d else (a.flatten(1), b.flatten(1))
                w = merged[found] - principal(config, original[found], s, weight, conv1d, tensors[f"{module}.lora_B.weight"].shape[1])
                merged[found] = add(w.flatten(1), s, b, a).reshape(w.shape)
                rescale(tensors, module, found, 0 if conv1d else 1)
            elif tail == "embedding_B":
                a = tensors.pop(f"{module}.lora_embedding_A")
                s = scaling(config, module, a.shape[0]) * weight
                found = target(f"{module}.weight")
                merged[found] = add(merged[found], s, a.T, b.T)
                rescale(tensors, module, found, 0)
            elif tail == "B.bias":
                rank = tensors[f"{module}.lora_B.weight"].shape[1]
                found = target(f"{module}.bias")
                merged[found] = merged[found] + scaling(config, module, rank) * weight * b
            elif tail in ("A.weight", "embedding_A", "magnitude_vector") or tail.startswith(("velora", "monteclora")):
                pass
            elif name.endswith(".token_adapter.trainable_tokens_delta"):
                module = name.removesuffix(".token_adapter.trainable_tokens_delta")
                found = target(f"{module}.weight")
                merged[found] = merged[found].index_copy(0, torch.tensor(token_rows(config, module)), b)
            else:
                found = target(name.replace(".token_adapter.", ".").replace(".base_layer.", "."))
                if name.endswith(".base_layer.weight") and b.shape == original[found].shape:
                    assert torch.equal(b, original[found]), f"{name} differs from the base"
                else:
                    merged[found] = b
    if tied == "untie":
        target("lm_head.weight")
    return merged


def embedding_name(original) -> str:
    """The input embedding that the head is tied to."""
    (name,) = [n for n in original if n.endswith(("embed_tokens.weight", "wte.weight"))]
    return name


def principal(config, w, scale, weight, conv1d, rank):
    """What the initialisation has taken out of the base."""
    if config.get("init_lora_weights") == "pissa":
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return weight * (u[:, :rank] * s[:rank]) @ v[:rank]
    if config.get("init_lora_weights") == "olora":
        assert not conv1d
        q, r = torch.linalg.qr(w)
        return scale * q[:, :rank] @ r[:rank]
    return 0


def weight_name(module: str, original) -> str:
    """nn.MultiheadAttention has the weights of its three projections in one, and the output's in a module of its own."""
    module = module.replace(".base_layer.", ".")
    fused = f"{module}.in_proj_weight"
    return fused if find(fused, original) else f"{module}.weight"


def expand(config: dict, a, b, inputs: int):
    """Turns compact factors into ordinary ones."""
    if config.get("use_bdlora"):
        n = config["use_bdlora"]["nblocks"]
        if a.shape[1] < inputs:
            a = torch.block_diag(*a.chunk(n))
        elif b.shape[1] < a.shape[0]:
            b = torch.block_diag(*b.chunk(n))
    if config.get("use_qalora"):
        group = config["qalora_group_size"]
        a = a.repeat_interleave(group, dim=1) * (a.shape[1] / group)
        check_pooled(config, a, b, group)
    if enabled := config.get("enable_lora"):
        b = b.flatten(1)
        blocks = torch.block_diag(*b.chunk(a.shape[0] // b.shape[1]))
        width = b.shape[0] // sum(enabled)
        rows = [torch.arange(g * width, (g + 1) * width) for g, on in enumerate(enabled) if on]
        compact, b = b, torch.zeros(width * len(enabled), a.shape[0], dtype=b.dtype).index_copy(0, torch.cat(rows), blocks)
        check_merged_linear(enabled, a, compact, b)
    return a, b


def check_merged_linear(enabled, a, compact, b):
    """The forward of MergedLinear is that of the expanded factors."""
    rank = a.shape[0] // sum(enabled)
    layer = peft.tuners.lora.MergedLinear(
        a.shape[1], b.shape[0], r=rank, lora_alpha=rank, enable_lora=enabled, merge_weights=False, bias=False
    ).double()
    layer.weight.data.zero_()
    layer.lora_A.weight.data, layer.lora_B.weight.data = a, compact.unsqueeze(2)
    with torch.no_grad():
        check_close({"forward": layer(torch.eye(a.shape[1], dtype=torch.float64).unsqueeze(0))[0].T}, {"forward": b @ a})


def check_pooled(config, a, b, group):
    """PEFT's own forward of QA-LoRA is that of the expanded factors; it has no merge."""
    from peft.tuners.lora.variants import QALoraLinearVariant

    pooled = a[:, ::group] / (a.shape[1] / group / group)
    module = SimpleNamespace(
        lora_A={"x": SimpleNamespace(weight=pooled)},
        lora_B={"x": SimpleNamespace(weight=b)},
        lora_dropout={"x": torch.nn.Identity()},
        scaling={"x": 1.0},
        qalora_group_size={"x": group},
        in_features=a.shape[1],
        training=False,
    )
    x = torch.eye(a.shape[1], dtype=torch.float64)
    result = QALoraLinearVariant.forward(module, "x", x, torch.zeros(a.shape[1], b.shape[0], dtype=torch.float64))
    check_close({"forward": result.T}, {"forward": b @ a})


def token_rows(config: dict, module: str) -> list[int]:
    indices = config["trainable_token_indices"]
    if isinstance(indices, list):
        return indices
    return next(rows for name, rows in indices.items() if module == name or module.endswith("." + name))


def add_exactly(w, s, b, a):
    """w + s·b·a in rational arithmetic, rounded once to float64."""
    scale = Fraction(s)
    rows = [[Fraction(x) for x in row] for row in b.tolist()]
    columns = [[Fraction(x) for x in column] for column in a.T.tolist()]
    return torch.tensor(
        [
            [float(Fraction(x) + scale * sum(p * q for p, q in zip(row, column))) for x, column in zip(line, columns)]
            for line, row in zip(w.tolist(), rows)
        ],
        dtype=torch.float64,
    )


def check_close(one: dict, two: dict, limit=1e-12):
    for name, tensor in one.items():
        error = (two[name] - tensor).abs().max() / tensor.abs().max()
        assert error <= limit, f"{name}: relative error {error:.3g}"
