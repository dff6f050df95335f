"""Writes ends.json: the two ends of language models, as transformers builds and saves them.

An object is one model type: "config" has the keys of its config.json that bear on the tie, as save_pretrained writes them; "shapes"
are those of the two-dimensional tensors that lie in no numbered module, and of one that does, under the names of the saved
checkpoint; "embedding" and "head" are the names of its ends in the files ("" where the files do not hold one), and "tied" says
whether get_input_embeddings and get_output_embeddings return one parameter.

The models are small where their configurations can be made so, and are built and saved on the processor.

Producer: transformers 5.24.0, torch 2.15.0. Classes that cannot be built this way are named on stderr and left out.
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers.models.auto import modeling_auto as auto  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

CLASSES = {
    **auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    **auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
KEPT = ("model_type", "architectures", "tie_word_embeddings", "vocab_size")
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32, "emb_dim": 32,
    "word_embed_proj_dim": 32, "embedding_size": 32, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_decoder_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_dim": 48,
    "intermediate_size": 48, "d_ff": 48, "n_inner": 48, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0, "max_position_embeddings": 64, "n_positions": 64,
}
LARGEST = 300_000_000  # parameters


def config_of(model_type):
    """The configuration with small sizes where it takes them, then without those that a model refuses."""
    default = CONFIG_MAPPING[model_type]()
    small = {k: v for k, v in SMALL.items() if hasattr(default, k)}
    few = {k: v for k, v in small.items() if k in ("vocab_size", "num_hidden_layers", "n_layer", "n_layers", "num_layers", "pad_token_id",
                                                   "bos_token_id", "eos_token_id")}
    for sizes in (small, few, {}):
        try:
            yield CONFIG_MAPPING[model_type](**sizes)
        except Exception:  # noqa: BLE001  the next sizes may do
            continue


def build(model_type, name):
    """A small model; or an error."""
    error = None
    for config in config_of(model_type):
        try:
            with torch.device("meta"):
                model = getattr(transformers, name)(config)
            if sum(p.numel() for p in model.parameters()) > LARGEST:
                raise ValueError("too large")
            model = getattr(transformers, name)(config)
            return model
        except Exception as e:  # noqa: BLE001
            error = e
    raise error or ValueError("no configuration")


def name_of(parameter, model, saved):
    """The name under which a parameter is saved; "" if it is not."""
    for name, tensor in saved.items():
        if tuple(tensor.shape) == tuple(parameter.shape) and torch.equal(tensor, parameter.detach()):
            return name
    return ""


def is_numbered(name):
    return any(part.isdigit() for part in name.split("."))


def describe(model):
    with torch.no_grad():  # values of their own tell parameters apart
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.arange(p.numel(), dtype=torch.float32).reshape(p.shape) + 0.37 * i)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if table is None or head is None:
        raise ValueError("names no ends")
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, max_shard_size="100GB")
        config = json.loads((Path(directory) / "config.json").read_text())
        with safe_open(Path(directory) / "model.safetensors", "pt") as file:
            saved = {k: file.get_tensor(k) for k in file.keys()}
    wide = {k: list(v.shape) for k, v in saved.items() if v.ndim == 2}
    shapes = {k: v for k, v in wide.items() if not is_numbered(k)}
    shapes |= dict([(k, v) for k, v in wide.items() if is_numbered(k)][:1])
    kept = {k: config[k] for k in KEPT if k in config}
    if isinstance(config.get("text_config"), dict):
        kept["text_config"] = {k: config["text_config"][k] for k in KEPT if k in config["text_config"]}
    tied = head.weight.data_ptr() == table.weight.data_ptr()
    e, h = name_of(table.weight, model, saved), name_of(head.weight, model, saved)
    if tied:  # one tensor, saved under one name
        h = ""
    return {"config": kept, "shapes": shapes, "embedding": e, "head": h, "tied": tied}


def main():
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float32)
    rows, only = [], sys.argv[1:]
    for model_type, name in sorted(CLASSES.items()):
        if isinstance(name, tuple | list):
            name = name[0]
        if only and model_type not in only:
            continue
        try:
            rows.append(json.dumps(describe(build(model_type, name))))
        except Exception as e:  # noqa: BLE001  named, and left out
            print(f"{model_type}: {name}: {str(e)[:100]!r}", file=sys.stderr)
    out = Path(__file__).with_name("ends.json")
    (sys.stdout if only else out.open("w")).write("[\n" + ",\n".join(rows) + "\n]\n")


main()
