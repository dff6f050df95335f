"""Trains (fills with noise), saves and edits adapters."""

import copy
import json
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file

from bases import BASES, generator

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"


@dataclass
class Adapter:
    config: peft.PeftConfig
    base: str | None = None  # the base it is trained on, if not the case's
    model: type | None = None  # the class it is trained in, if not the base's
    prepare: object = None  # changes the base model before the adapter is added
    save: object = None  # writes the trained PeftModel, if not plain save_pretrained
    edits: tuple = ()  # changes to the written config and tensors, in place
    disguise: tuple = ()  # the same, made after PEFT has merged: it reads these otherwise or not at all

    def write(self, base: str, seed: str, directory: Path):
        """Trains the adapter on the base, saves and edits it; the disguise is for later."""
        name = self.base or base
        torch.manual_seed(0)
        model_class = self.model or BASES[name].model
        model = model_class.from_pretrained(f"bases/{name}", dtype="auto")
        if self.prepare:
            self.prepare(model)
        save = self.save or save_pretrained
        save(model, fresh(self.config), seed, directory)
        (directory / "README.md").unlink(missing_ok=True)

        apply_edits(directory, self.edits)


def load_weights(directory: Path) -> dict[str, torch.Tensor]:
    if (directory / WEIGHTS).exists():
        return load_file(directory / WEIGHTS)
    return torch.load(directory / PICKLE, weights_only=True)


def fresh(config):
    """A copy of a config, which training may change. PEFT 0.2 hides the fields from deepcopy."""
    new = copy.deepcopy(config)
    for field in fields(config):
        setattr(new, field.name, copy.deepcopy(getattr(config, field.name)))
    return new


def apply_edits(directory: Path, edits):
    if not edits:
        return
    config = json.loads((directory / CONFIG).read_text())
    tensors = load_file(directory / WEIGHTS)
    for edit in edits:
        edit(config, tensors)
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def lora(*edits, disguise=(), base=None, model=None, prepare=None, save=None, **config) -> Adapter:
    """A LoRA adapter; the other keyword arguments are those of LoraConfig."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | config
    return Adapter(peft.LoraConfig(**config), base, model, prepare, save, edits, disguise)


# Training and saving.


def train(model, seed: str, std=0.02):
    """Moves every trainable parameter by noise, as training does."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator(seed, name))
            parameter.data += (noise * std).to(parameter.dtype)


def save_pretrained(model, config, seed, directory, prepare=None, **options):
    peft_model = peft.get_peft_model(model, config)
    if prepare:
        prepare(peft_model)
    train(peft_model, seed)
    peft_model.save_pretrained(directory, **options)


def save_untrained(model, config, seed, directory):
    peft.get_peft_model(model, config).save_pretrained(directory)


def save_pickle(model, config, seed, directory):
    save_pretrained(model, config, seed, directory, safe_serialization=False)


def save_pickle_legacy(model, config, seed, directory):
    """Every factor is stored transposed, in the container of torch before 1.6."""
    save_pickle(model, config, seed, directory)
    tensors = {name: tensor.t().contiguous().t() for name, tensor in load_weights(directory).items()}
    torch.save(tensors, directory / PICKLE, _use_new_zipfile_serialization=False)


def save_resaved(model, config, seed, directory):
    """Saves the tensors of a pickle, which is all that old releases write, as safetensors."""
    save_pretrained(model, config, seed, directory)
    pickle = directory / "adapter_model.bin"
    save_file(torch.load(pickle), directory / WEIGHTS, metadata={"format": "pt"})
    pickle.unlink()


def save_without_embedding(model, config, seed, directory):
    save_pretrained(model, config, seed, directory, save_embedding_layers=False)


def save_f32_modules(model, config, seed, directory):
    """The saved modules are trained in F32 on a BF16 base."""

    def upcast(peft_model):
        for name, parameter in peft_model.named_parameters():
            if ".modules_to_save." in name:
                parameter.data = parameter.data.float()

    save_pretrained(model, config, seed, directory, prepare=upcast)


def save_native(model, config, seed, directory):
    """Injects the adapter without a PeftModel: keys have no base_model.model. prefix."""
    peft.inject_adapter_in_model(config, model)
    train(model, seed)
    config.inference_mode = True
    config.save_pretrained(directory)
    tensors = peft.get_peft_model_state_dict(model)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def save_converted(model, config, seed, directory):
    """Saves an adapter that changed its base at the start as an ordinary one on the original base."""
    peft_model = peft.get_peft_model(model, config)
    with tempfile.TemporaryDirectory() as temporary:
        initial = Path(temporary) / "initial"
        init = config.init_lora_weights
        peft_model.peft_config["default"].init_lora_weights = True
        peft_model.save_pretrained(initial)
        peft_model.peft_config["default"].init_lora_weights = init
        train(peft_model, seed)
        peft_model.save_pretrained(directory, path_initial_model_for_weight_conversion=str(initial))


# Edits of a written adapter.


def set_config(**fields):
    def edit(config, tensors):
        config.update(fields)

    return edit


def keep_config(*names):
    """Drops every config field but these."""

    def edit(config, tensors):
        for name in [n for n in config if n not in names]:
            del config[name]

    return edit


def rename(change):
    """Renames every tensor by a function of its name."""

    def edit(config, tensors):
        for name in list(tensors):
            tensors[change(name)] = tensors.pop(name)

    return edit


def replace(old, new):
    return rename(lambda name: name.replace(old, new))


def cast(dtype, only=""):
    """Rounds the tensors whose name contains a word to a dtype."""

    def edit(config, tensors):
        for name in tensors:
            if only in name:
                tensors[name] = tensors[name].to(dtype)

    return edit


def change(word, function):
    """Applies a function to the tensors whose name contains a word."""

    def edit(config, tensors):
        matches = [name for name in tensors if word in name]
        assert matches, f"no tensor named like {word}"
        for name in matches:
            tensors[name] = function(tensors[name]).contiguous()

    return edit


def drop(word):
    """Drops the tensors whose name contains a word."""

    def edit(config, tensors):
        matches = [name for name in tensors if word in name]
        assert matches, f"no tensor named like {word}"
        for name in matches:
            del tensors[name]

    return edit


def add(name, tensor):
    def edit(config, tensors):
        tensors[name] = tensor

    return edit


def drop_all(config, tensors):
    tensors.clear()


def tiny_values(config, tensors):
    """Sets negative zeros and subnormal F32 values."""
    for tensor in tensors.values():
        flat = tensor.view(-1)
        flat[0::5] = -0.0
        flat[1::7] = 2.0**-149
        flat[2::11] = -(2.0**-127) * 1.25
