"""Writes bases/: models of ../peft/bases and ../diffusion/bases as torch.save stores them."""

import json
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

HERE = Path(__file__).parent
OUT = HERE / "bases"
PEFT = HERE.parent / "peft" / "bases"
PIPELINE = HERE.parent / "diffusion" / "bases" / "sd1"


def backwards(tensors):
    """The tensors in another order than safetensors stores them in."""
    return dict(reversed(tensors.items()))


def bert():
    """A directory of one pickle, and a file in the older container with values beside the tensors."""
    (OUT / "bert").mkdir()
    shutil.copy(PEFT / "bert" / "config.json", OUT / "bert")
    tensors = load_file(PEFT / "bert" / "model.safetensors")
    torch.save(backwards(tensors), OUT / "bert" / "pytorch_model.bin")
    torch.save({"state_dict": tensors, "epoch": 3}, OUT / "bert.ckpt", _use_new_zipfile_serialization=False)


def tied():
    """Two names of one storage. The file of safetensors has a copy for each."""
    (OUT / "llama-tied").mkdir()
    shutil.copy(PEFT / "llama-tied" / "config.json", OUT / "llama-tied")
    tensors = load_file(PEFT / "llama-tied" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, OUT / "llama-tied" / "pytorch_model.bin")
    save_file({name: t.clone() for name, t in tensors.items()}, OUT / "llama-tied.safetensors", {"format": "pt"})


def sharded(base):
    """A directory of shards with their index."""
    (OUT / base).mkdir()
    shutil.copy(PEFT / base / "config.json", OUT / base)
    index = json.loads((PEFT / base / "model.safetensors.index.json").read_text())
    pickled = {}
    for shard in sorted(set(index["weight_map"].values())):
        pickled[shard] = "pytorch_" + shard.replace(".safetensors", ".bin")
        torch.save(backwards(load_file(PEFT / base / shard)), OUT / base / pickled[shard])
    index["weight_map"] = {name: pickled[shard] for name, shard in index["weight_map"].items()}
    (OUT / base / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


def pipeline():
    """The pickles of a pipeline; its other files are those of ../diffusion/bases/sd1."""
    for folder, name in [("text_encoder", "model"), ("vae", "diffusion_pytorch_model")]:
        (OUT / "sd1" / folder).mkdir(parents=True)
        tensors = load_file(PIPELINE / folder / f"{name}.safetensors")
        name = {"model": "pytorch_model"}.get(name, name)
        torch.save(backwards(tensors), OUT / "sd1" / folder / f"{name}.bin")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    bert()
    tied()
    sharded("llama-sharded")
    pipeline()


if __name__ == "__main__":
    main()
