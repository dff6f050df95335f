"""Writes tasks.txt: the heads that the classes of transformers put on the trunk of a model, for the tasks that people train LoRA for.

A line is a model type, a class, PEFT's word for the task ("-" where it has none), and the parameters of the head. "*" marks one whose
rows are the labels; "+" one that the class expects in the trunk, such as a pooler, and that not every checkpoint of the trunk has.
No weights are made: the models are built on the device "meta" from the defaults of their configurations.

Producer: transformers 5.24.0, torch 2.15.0. Classes that need other packages or other sizes are named on stderr and left out.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.models.auto import modeling_auto as auto  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

TASKS = {
    "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "image": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "audio": auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "pixels": auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
}
LABELS = 7  # no default has a dimension of it

# What some configurations leave open.
SET = {
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "ministral": {"head_dim": 64, "num_key_value_heads": 8},
    "nemotron": {"num_key_value_heads": 8},
}


def build(model_type, name, labels):
    config = CONFIG_MAPPING[model_type](**SET.get(model_type, {}))
    config.num_labels = labels
    with torch.device("meta"):
        return getattr(transformers, name)(config)


def describe(model) -> list[str]:
    """The parameters of the head, with their marks."""
    prefix = model.base_model_prefix + "."
    words = []
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(prefix):
            words.append(name + ("*" if tensor.shape and tensor.shape[0] == LABELS else ""))
        elif name.startswith(prefix + "pooler."):
            words.append(name + "+")
    return words


def main():
    warnings.simplefilter("ignore")
    lines = set()
    for task, models in TASKS.items():
        for model_type, names in models.items():
            for name in [names] if isinstance(names, str) else names:
                try:
                    words = describe(build(model_type, name, 2 if task == "QUESTION_ANS" else LABELS))
                except Exception as error:
                    print(f"left out: {model_type} {name}: {type(error).__name__} {str(error).splitlines()[:1]}", file=sys.stderr)
                    continue
                if words and len(words) <= 24:
                    lines.add(" ".join([model_type, name, task if task.isupper() else "-", *words]))
    (Path(__file__).parent / "tasks.txt").write_text("".join(line + "\n" for line in sorted(lines)))


if __name__ == "__main__":
    main()
