"""Writes heads/: adapters that save a head which the base they name lacks, or has for another number of classes.

    python heads.py

A case has base/, adapter/ as PEFT saves it, truth.safetensors with every tensor of PEFT's merge_and_unload in float64 under the
names that transformers saves, and case.json. The producers are those of make.py.
"""

import json
import os
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

ENVIRONMENT = {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
sys.dont_write_bytecode = True

import peft  # noqa: E402
import torch  # noqa: E402
import transformers as tf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers.utils import logging  # noqa: E402

from adapters import save_f32_modules, save_pretrained  # noqa: E402
from bases import Base, read_checkpoint  # noqa: E402

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = SMALL | {"vocab_size": 24, "max_position_embeddings": 16}


@dataclass
class Head:
    base: Base
    model: type  # the class that the adapter is trained in
    labels: int
    config: dict  # of LoRA
    added: list  # tensors that the base lacks
    reshaped: list = field(default_factory=list)  # tensors that the base has in another shape
    prefix: str = ""  # what the names of the base's tensors lack
    save: object = save_pretrained
    comment: str = ""

    def write(self, directory: Path):
        self.base.write(directory / "base")
        torch.manual_seed(0)
        model = self.load(directory, "auto")
        config = peft.LoraConfig(r=2, lora_alpha=4, **self.config)
        self.save(model, config, directory.name, directory / "adapter")
        (directory / "adapter" / "README.md").unlink(missing_ok=True)
        save_file(self.merge(directory), directory / "truth.safetensors")
        description = {
            "class": self.model.__name__,
            "labels": self.labels,
            "added": sorted(self.added),
            "reshaped": sorted(self.reshaped),
            "prefix": self.prefix,
            "producer": f"peft {peft.__version__}, transformers {tf.__version__}",
            "comment": self.comment,
        }
        (directory / "case.json").write_text(json.dumps(description, indent=2) + "\n")

    def load(self, directory: Path, dtype):
        """The class on the base. A head that the base lacks, or has for another number of labels, is made at random."""
        return self.model.from_pretrained(
            directory / "base", num_labels=self.labels, dtype=dtype, ignore_mismatched_sizes=True
        )

    def merge(self, directory: Path) -> dict:
        model = self.load(directory, torch.float64)
        loaded = peft.PeftModel.from_pretrained(model, directory / "adapter", autocast_adapter_dtype=False)
        with tempfile.TemporaryDirectory() as temporary:
            loaded.merge_and_unload().save_pretrained(temporary)
            merged = read_checkpoint(Path(temporary))
        assert all(tensor.dtype == torch.float64 for tensor in merged.values())
        return merged


def bert(**more):
    return tf.BertConfig(**TEXT, **more)


def roberta():
    return tf.RobertaConfig(**TEXT, type_vocab_size=1)


def distilbert():
    return tf.DistilBertConfig(dim=8, hidden_dim=12, n_layers=1, n_heads=2, vocab_size=24, max_position_embeddings=16)


def gpt2():
    return tf.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=24, pad_token_id=0)


def vit(**more):
    return tf.ViTConfig(**SMALL, image_size=8, patch_size=4, **more)


def llama():
    return tf.LlamaConfig(**TEXT, num_key_value_heads=1, pad_token_id=0)


def both(*modules):
    return [f"{module}.{parameter}" for module in modules for parameter in ("bias", "weight")]


SEQ = {"task_type": "SEQ_CLS"}
BERT = {"target_modules": ["query", "value"]}
HEADS = {
    "bert": Head(
        Base(bert(), tf.BertForPreTraining, F32),
        tf.BertForSequenceClassification,
        3,
        BERT | SEQ,
        both("classifier"),
        comment="As bert-base-uncased: heads for training, a pooler, and no classifier.",
    ),
    "bert-tokens": Head(
        Base(bert(), tf.BertModel, F32),
        tf.BertForTokenClassification,
        5,
        BERT | {"task_type": "TOKEN_CLS"},
        both("classifier"),
        prefix="bert.",
        comment="A trunk without a prefix, as sentence-transformers saves it.",
    ),
    "bert-classes": Head(
        Base(bert(num_labels=6), tf.BertForSequenceClassification, F32),
        tf.BertForSequenceClassification,
        3,
        BERT | SEQ,
        [],
        both("classifier"),
        comment="The base classifies already, in another number of classes.",
    ),
    "bert-answers": Head(
        Base(bert(), tf.BertForMaskedLM, F16),
        tf.BertForQuestionAnswering,
        2,
        BERT | {"task_type": "QUESTION_ANS"},
        both("qa_outputs"),
        comment="Spans of answers, which are no labels.",
    ),
    "roberta": Head(
        Base(roberta(), tf.RobertaForMaskedLM, F16),
        tf.RobertaForSequenceClassification,
        2,
        BERT | SEQ,
        both("classifier.dense", "classifier.out_proj"),
        save=save_f32_modules,
        comment="A classifier of two layers, in F32 for a base in F16; two labels are the default.",
    ),
    "distilbert": Head(
        Base(distilbert(), tf.DistilBertForMaskedLM, F32),
        tf.DistilBertForSequenceClassification,
        4,
        {"target_modules": ["q_lin", "v_lin"]} | SEQ,
        both("pre_classifier", "classifier"),
        comment="PEFT saves pre_classifier because its name ends with classifier.",
    ),
    "gpt2": Head(
        Base(gpt2(), tf.GPT2Model, F32, save={"max_shard_size": "4KB"}),
        tf.GPT2ForSequenceClassification,
        3,
        {"target_modules": ["c_attn"]} | SEQ,
        ["score.weight"],
        prefix="transformer.",
        comment="As gpt2 on the hub: a trunk without a prefix. In shards.",
    ),
    "vit": Head(
        Base(vit(), tf.ViTModel, F32),
        tf.ViTForImageClassification,
        4,
        BERT | {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]},
        both("classifier"),
        prefix="vit.",
        comment="As vit-base-patch16-224-in21k: a trunk without a prefix; the adapter has the names of transformers 5.",
    ),
    "vit-classes": Head(
        Base(vit(num_labels=7), tf.ViTForImageClassification, F32),
        tf.ViTForImageClassification,
        4,
        BERT | {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]},
        [],
        both("classifier"),
        comment="The base classifies already, in another number of classes.",
    ),
    "llama": Head(
        Base(llama(), tf.LlamaForCausalLM, BF16, save={"max_shard_size": "1KB"}),
        tf.LlamaForSequenceClassification,
        1,
        {"target_modules": ["q_proj", "v_proj"]} | SEQ,
        ["score.weight"],
        save=save_f32_modules,
        comment="A reward model: one label, in F32 for a base in BF16. In shards.",
    ),
}


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    os.chdir(Path(__file__).parent / "heads")
    for name, head in HEADS.items():
        directory = Path(name)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        print(directory, flush=True)
        head.write(directory)


if __name__ == "__main__":
    main()
