"""Tiny base checkpoints with random weights, as save_pretrained writes them."""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file, save_file


def generator(*seed) -> torch.Generator:
    """A generator whose stream depends on the seed words alone."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, seed)).encode()))


@dataclass
class Base:
    config: tf.PretrainedConfig
    model: type
    dtype: torch.dtype = torch.float32
    save: dict = field(default_factory=dict)  # extra arguments of save_pretrained
    edit: object = None  # changes the written tensors and config.json in place

    def write(self, directory: Path):
        model = self.model(self.config)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(name, *parameter.shape)) * 0.05
            gain = 1.0 if is_norm(name) else 0.0
            parameter.data = noise + gain
        model.to(self.dtype).save_pretrained(directory, **self.save)
        (directory / "generation_config.json").unlink(missing_ok=True)
        if self.edit:
            edit_checkpoint(directory, self.edit)


def is_norm(name: str) -> bool:
    """Whether a parameter is the gain of a normalisation."""
    module = name.lower().split(".")[-2:]
    return module[-1] == "weight" and any(word in module[0] for word in ("norm", "ln_"))


def edit_checkpoint(directory: Path, edit):
    tensors = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    edit(tensors, config)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_checkpoint(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, sharded or not."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


# Hand-made parts of checkpoints.


def add_masks(tensors, config):
    """Adds the causal masks that old GPT-2 checkpoints hold beside the parameters."""
    size = config["n_positions"]
    for layer in range(config["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(size, size).tril().reshape(1, 1, size, size)


def store_head(tensors, config):
    """Stores the tied head a second time, as some converters do."""
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def quantise_nf4(tensors, config):
    """Stores the q projections as bitsandbytes 4-bit weights do: packed U8 with companions."""
    for name in [n for n in tensors if n.endswith("q_proj.weight")]:
        weight = tensors[name].float()
        draw = generator("nf4", name)
        tensors[name] = torch.randint(0, 256, (weight.numel() // 2, 1), generator=draw).to(torch.uint8)
        tensors[f"{name}.absmax"] = weight.reshape(-1, 64).abs().amax(dim=1)
        tensors[f"{name}.quant_map"] = torch.linspace(-1, 1, 16)
        state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)})
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = torch.tensor(list(state.encode()), dtype=torch.uint8)
    config["quantization_config"] = {
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_type": "nf4",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def quantise_fp8(tensors, config):
    """Stores the q projections in F8_E4M3 with one scale each; config.json does not mention it."""
    for name in [n for n in tensors if n.endswith("q_proj.weight")]:
        weight = tensors[name].float()
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale.reshape(1)


def name_experts(tensors, config):
    """Names the number of experts as transformers 4 does."""
    config["num_experts"] = config["num_local_experts"]


def stack_experts(tensors, config=None):
    """Stores the experts as transformers 5 has them in memory: stacked, gate and up projection one below the other."""
    for name in list(tensors):
        if ".block_sparse_moe." in name:
            tensors[name.replace(".block_sparse_moe.", ".mlp.")] = tensors.pop(name)
    styles = {"gate_up_proj": (["gate_proj", "up_proj"], ["w1", "w3"]), "down_proj": (["down_proj"], ["w2"])}
    modules = sorted({name.split(".experts.")[0] + ".experts" for name in tensors if ".experts.0." in name})
    for module in modules:
        for parameter, options in styles.items():
            experts = []
            for parts in options:
                while f"{module}.{len(experts)}.{parts[0]}.weight" in tensors:
                    e = len(experts)
                    experts.append(torch.cat([tensors.pop(f"{module}.{e}.{part}.weight") for part in parts]))
            tensors[f"{module}.{parameter}"] = torch.stack(experts)


# Configurations.


def llama(layers=1, tied=False, hidden=32, intermediate=48, vocab=48, heads=4, **extra):
    return tf.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        **extra,
    )


def qwen2():
    return tf.Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=48,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )


def mixtral(intermediate=24):
    return tf.MixtralConfig(
        hidden_size=32,
        intermediate_size=intermediate,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        vocab_size=48,
        max_position_embeddings=64,
    )


def qwen3_moe():
    return tf.Qwen3MoeConfig(
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=12,
        num_hidden_layers=2,
        mlp_only_layers=[0],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=3,
        num_experts_per_tok=2,
        vocab_size=48,
        max_position_embeddings=64,
    )


def gpt_oss(intermediate=24):
    return tf.GptOssConfig(
        hidden_size=32,
        intermediate_size=intermediate,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=3,
        vocab_size=48,
        max_position_embeddings=64,
    )


def gpt2():
    return tf.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=16, vocab_size=48, n_inner=48)


def bert(kind):
    return kind(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=48,
        max_position_embeddings=32,
        type_vocab_size=2,
        num_labels=3,
    )


def t5():
    return tf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=48)


def siglip():
    return tf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4
    )


def whisper():
    return tf.WhisperConfig(
        vocab_size=48,
        d_model=16,
        num_mel_bins=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=16,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
IMAGE = {"image_size": 8, "patch_size": 4}


def vit():
    return tf.ViTConfig(**SMALL, **IMAGE, num_labels=3)


def llava():
    text = tf.LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=48, max_position_embeddings=64)
    vision = tf.CLIPVisionConfig(**SMALL, **IMAGE, projection_dim=16)
    return tf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=40)


def name_vision_model(tensors, config):
    """Names the vision half as the checkpoints of the hub do."""
    for name in list(tensors):
        if name.startswith("vision_tower."):
            tensors[name.replace("vision_tower.", "vision_tower.vision_model.")] = tensors.pop(name)


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**SMALL, "num_key_value_heads": 2, "vocab_size": 48, "max_position_embeddings": 64, "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    return tf.Qwen2VLConfig(text_config=text, vision_config=vision)


def dinov2():
    return tf.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, **IMAGE)


def swin():
    return tf.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=16, patch_size=4, window_size=2)


def segformer():
    return tf.SegformerConfig(
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_encoder_blocks=2,
        num_attention_heads=[1, 2],
        sr_ratios=[2, 1],
        patch_sizes=[3, 3],
        strides=[2, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=3,
    )


class BlocksConfig(tf.PretrainedConfig):
    model_type = "blocks"


class Blocks(tf.PreTrainedModel):
    """The modules of torch that PEFT wraps and that no model above has: it is only loaded, trained and merged, never run."""

    config_class = BlocksConfig

    def __init__(self, config):
        super().__init__(config)
        nn = torch.nn
        self.conv1 = nn.Conv1d(8, 12, 3)
        self.conv2 = nn.Conv2d(6, 10, (3, 2))
        self.point = nn.Conv2d(8, 12, 1)
        self.conv3 = nn.Conv3d(3, 9, (2, 2, 3), bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.post_init()

    def _init_weights(self, module):
        pass

    def get_input_embeddings(self):
        return None


BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

BASES = {
    "llama-bf16": Base(llama(), tf.LlamaForCausalLM, BF16),
    "llama-deep": Base(llama(layers=2), tf.LlamaForCausalLM, BF16),
    "llama-f16": Base(llama(), tf.LlamaForCausalLM, F16),
    "llama-f32": Base(llama(), tf.LlamaForCausalLM, F32),
    "llama-f64": Base(llama(vocab=16, intermediate=24), tf.LlamaForCausalLM, F64),
    "llama-sharded": Base(llama(layers=2), tf.LlamaForCausalLM, BF16, save={"max_shard_size": "16KB"}),
    "llama-odd": Base(llama(hidden=40, intermediate=72, vocab=67, heads=10), tf.LlamaForCausalLM, BF16),
    "llama-tied": Base(llama(tied=True), tf.LlamaForCausalLM, BF16),
    "llama-tied-sharded": Base(llama(tied=True), tf.LlamaForCausalLM, BF16, save={"max_shard_size": "16KB"}),
    "llama-tied-twice": Base(llama(tied=True), tf.LlamaForCausalLM, BF16, edit=store_head),
    "llama-trunk": Base(llama(), tf.LlamaModel, BF16),
    "llama-nf4": Base(llama(), tf.LlamaForCausalLM, BF16, edit=quantise_nf4),
    "llama-fp8": Base(llama(), tf.LlamaForCausalLM, BF16, edit=quantise_fp8),
    "qwen2": Base(qwen2(), tf.Qwen2ForCausalLM, BF16),
    "gpt2": Base(gpt2(), tf.GPT2LMHeadModel, F32),
    "gpt2-trunk": Base(gpt2(), tf.GPT2Model, F32, edit=add_masks),
    "bert": Base(bert(tf.BertConfig), tf.BertForSequenceClassification, F32),
    "roberta": Base(bert(tf.RobertaConfig), tf.RobertaForSequenceClassification, F32),
    "t5": Base(t5(), tf.T5ForConditionalGeneration, F32),
    "mixtral": Base(mixtral(), tf.MixtralForCausalLM, BF16),
    "mixtral-stacked": Base(mixtral(), tf.MixtralForCausalLM, BF16, edit=stack_experts),
    "mixtral-square": Base(mixtral(intermediate=16), tf.MixtralForCausalLM, BF16),
    "mixtral-square-stacked": Base(mixtral(intermediate=16), tf.MixtralForCausalLM, BF16, edit=stack_experts),
    "qwen3-moe": Base(qwen3_moe(), tf.Qwen3MoeForCausalLM, BF16),
    "qwen3-moe-stacked": Base(qwen3_moe(), tf.Qwen3MoeForCausalLM, F32, edit=stack_experts),
    "qwen3-moe-f32": Base(qwen3_moe(), tf.Qwen3MoeForCausalLM, F32, edit=name_experts),
    "gpt-oss": Base(gpt_oss(), tf.GptOssForCausalLM, BF16),
    "gpt-oss-square": Base(gpt_oss(intermediate=16), tf.GptOssForCausalLM, F32),
    "siglip": Base(siglip(), tf.SiglipVisionModel, F32),
    "vit": Base(vit(), tf.ViTForImageClassification, F32),
    "llava": Base(llava(), tf.LlavaForConditionalGeneration, BF16),
    "llava-hub": Base(llava(), tf.LlavaForConditionalGeneration, BF16, edit=name_vision_model),
    "qwen2-vl": Base(qwen2_vl(), tf.Qwen2VLForConditionalGeneration, BF16),
    "dinov2": Base(dinov2(), tf.Dinov2Model, F32),
    "swin": Base(swin(), tf.SwinModel, F32),
    "segformer": Base(segformer(), tf.SegformerForSemanticSegmentation, F32),
    "blocks": Base(BlocksConfig(), Blocks, BF16),
    "blocks-f32": Base(BlocksConfig(), Blocks, F32),
    "whisper": Base(whisper(), tf.WhisperForConditionalGeneration, F32),
}
