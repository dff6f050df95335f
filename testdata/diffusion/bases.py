"""The bases: pipelines of tiny models, and the same weights in one file."""

import hashlib
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import load_file, save_file

from models import flux, hunyuan_video, qwen_image, sd1, sd3, sdxl, wan, z_image
from native import Names

# Every weight is a multiple of GRAIN, so that sums with small factors are exact in float64.
GRAIN = 2.0**-24


SHARED_VAE = r"(encoder|decoder)\.conv_(in|out)\.\w+|(post_)?quant_conv\.\w+"
EMBEDDING = r"(^|\.)(shared|\w*_embedding|relative_attention_bias)$"


def random_weight(name: str, shape, dtype):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.125
    return (torch.round(values / GRAIN) * GRAIN).to(dtype)


def fill(model, name: str, dtype):
    """Gives every parameter a value that depends only on its name."""
    state = {
        key: random_weight(f"{name}/{key}", t.shape, dtype) for key, t in model.state_dict().items()
    }
    model = model.to(dtype)
    model.load_state_dict(state)
    return model.eval()


def pipeline_of(kind, scheduler):
    """Builds a pipeline from its models, and leaves everything else out."""

    def build(parts):
        wanted = inspect.signature(kind.__init__).parameters.values()
        missing = [p.name for p in wanted if p.name != "self" and p.default is p.empty]
        return kind(**dict.fromkeys(missing) | {"scheduler": scheduler()} | parts)

    return build


def sd1_pipeline(parts):
    return diffusers.StableDiffusionPipeline(
        **{"vae": None} | parts,
        tokenizer=None,
        scheduler=diffusers.PNDMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


FLOW = diffusers.FlowMatchEulerDiscreteScheduler


def ldm_converter(state, model):
    return converters.convert_ldm_unet_checkpoint(state, model.config)


def with_sizes(converter, **sizes):
    """A converter whose text states the sizes of the published model, with those of the tiny one.

    sizes are lines of its text and what they become, written as variable=value.
    """
    text = inspect.getsource(converter)
    for variable, value in sizes.items():
        text, count = re.subn(rf"\b{variable} = [\d.]+", f"{variable} = {value}", text)
        assert count == 1, (converter, variable)
    scope = dict(vars(converters))
    exec(text, scope)
    return scope[converter.__name__]


def published(converter, **sizes):
    """A converter of diffusers for the models of this file."""
    convert = with_sizes(converter, **sizes) if sizes else converter
    return lambda state, model: convert(dict(state))


def drop_prefix(state, prefix):
    return {name.removeprefix(prefix): t for name, t in state.items()}


@dataclass
class Base:
    """A pipeline with random weights.

    names are the components in single files: the denoiser in native names below a prefix, the
    others under their own names below theirs. clip_prefix says that the directory calls CLIP's
    modules text_model.…, as files of transformers 4 do.
    """

    name: str
    components: callable
    pipeline: callable
    dtype: torch.dtype
    denoiser: str
    layout: str
    convert: callable
    single: dict = field(default_factory=dict)  # file: {component: prefix}
    clip_prefix: bool = False
    open_clip: str = ""  # the component that single files have in OpenCLIP's names
    cache: dict = field(default_factory=dict)

    def build(self):
        """The pipeline, with its weights in the base's dtype."""
        parts = {
            name: fill(model, f"{self.name}/{name}", self.dtype)
            for name, model in self.components().items()
        }
        return self.pipeline(parts)

    def state(self, pipe) -> dict:
        """The tensors of the directory, named component/tensor."""
        state = {}
        for component, model in pipe.components.items():
            if isinstance(model, torch.nn.Module):
                state.update(
                    {
                        f"{component}/{key}": t.detach().clone()
                        for key, t in self.saved(model).items()
                    }
                )
        return state

    def saved(self, model) -> dict:
        state = model.state_dict()
        if isinstance(model, transformers.T5EncoderModel):
            del state["encoder.embed_tokens.weight"]
        if isinstance(model, transformers.CLIPTextModel) and self.clip_prefix:
            state = {f"text_model.{name}": t for name, t in state.items()}
        return state

    def weights(self) -> dict:
        """The tensors of the directory; made once."""
        if not self.cache:
            self.cache.update(self.state(self.build()))
        return self.cache

    def names(self) -> Names:
        return Names(self.layout, of_component(self.weights(), self.denoiser))

    def linear_modules(self, native: bool):
        """Component, module and shape of the weights of linear layers and convolutions.

        If native, the denoiser's modules have native names, and only these are listed.
        """
        state = self.weights()
        if native:
            part = self.names().to_native(of_component(state, self.denoiser))
            state = {f"{self.denoiser}/{name}": t for name, t in part.items()}
        for name, t in state.items():
            component, _, name = name.partition("/")
            module, _, kind = name.rpartition(".")
            if (
                kind == "weight"
                and t.ndim > 1
                and component != "vae"
                and not re.search(EMBEDDING, module)
            ):
                if not native and self.flat_clip(component):
                    module = f"text_model.{module}"
                yield component, module, t.shape

    def flat_clip(self, component: str) -> bool:
        """Reports whether the component is a CLIP without text_model. in the directory."""
        return f"{component}/encoder.layers.0.mlp.fc1.weight" in self.weights()

    def parameter(self, layer) -> str:
        """The name of a layer's weight in the directory."""
        module = layer.module
        if self.flat_clip(layer.component):
            module = module.removeprefix("text_model.")
        return f"{layer.component}/{module}.weight"

    def files(self) -> dict:
        """The directory and the single files that hold every component; nothing is left out."""
        whole = {file: None for file, prefixes in self.single.items() if "text_encoder" in prefixes}
        return {self.name: None} | whole

    def to_single(self, prefixes: dict) -> dict:
        """The tensors of a single file."""
        return self.rename_to_single(self.weights(), prefixes)

    def rename(self, changed: dict, file: str, only: str | None) -> dict:
        """Changed tensors under the names that they have in a directory or a single file."""
        if only:
            changed = {name: t for name, t in changed.items() if name.startswith(only + "/")}
        if file in self.single:
            before = self.to_single(self.single[file])
            after = self.rename_to_single(self.weights() | changed, self.single[file])
            return {name: t for name, t in after.items() if not torch.equal(t, before[name])}
        component = file.removeprefix(self.name).removeprefix("/")
        if component:
            return of_component(changed, component)
        return {name.replace("/", ".", 1): t for name, t in changed.items()}

    def rename_to_single(self, state: dict, prefixes: dict) -> dict:
        single = {}
        for component, prefix in prefixes.items():
            part = of_component(state, component)
            if component == self.denoiser:
                part = self.names().to_native(part)
            elif component == "vae":  # only names that both namespaces share
                part = {name: t for name, t in part.items() if re.fullmatch(SHARED_VAE, name)}
            elif component == self.open_clip:
                part = Names("open_clip", of_component(self.weights(), component)).to_native(part)
            elif self.flat_clip(component):
                part = {f"text_model.{name}": t for name, t in part.items()}
            single.update({prefix + name: t for name, t in part.items()})
        return single

    def write(self, directory: Path):
        """Writes the pipeline and its single files, and checks these with diffusers' converters."""
        pipe = self.build()
        pipe.save_pretrained(directory / self.name)
        state = self.weights()
        if self.clip_prefix:
            path = directory / self.name / "text_encoder" / "model.safetensors"
            save_file(of_component(state, "text_encoder"), path, {"format": "pt"})
        self.check_saved(state, directory / self.name)
        for file, prefixes in self.single.items():
            single = self.to_single(prefixes)
            save_file(single, directory / file)
            self.check_single(pipe, state, single, prefixes)

    def check_saved(self, state, directory):
        for path in directory.glob("*/*.safetensors"):
            same(load_file(path), of_component(state, path.parent.name))

    def check_single(self, pipe, state, single, prefixes):
        prefix = prefixes[self.denoiser]
        native = {name: t for name, t in single.items() if name.startswith(prefix)}
        if self.denoiser == "transformer":
            native = drop_prefix(native, prefix)
        same(
            self.convert(native, pipe.components[self.denoiser]), of_component(state, self.denoiser)
        )
        if self.open_clip in prefixes:
            prefix, model = prefixes[self.open_clip], pipe.components[self.open_clip]
            converted = converters.convert_open_clip_checkpoint(model, single, prefix)
            same(converted, of_component(state, self.open_clip))


def of_component(state, component) -> dict:
    return {
        name.split("/", 1)[1]: t for name, t in state.items() if name.startswith(component + "/")
    }


def same(got, want):
    assert got.keys() == want.keys(), sorted(got.keys() ^ want.keys())
    for name, t in want.items():
        assert got[name].dtype == t.dtype and torch.equal(got[name], t), name


BASES = {
    base.name: base
    for base in [
        Base(
            "sd1",
            sd1,
            sd1_pipeline,
            torch.float16,
            "unet",
            "unet",
            ldm_converter,
            clip_prefix=True,
            single={
                "sd1.safetensors": {
                    "unet": "model.diffusion_model.",
                    "vae": "first_stage_model.",
                    "text_encoder": "cond_stage_model.transformer.",
                }
            },
        ),
        Base(
            "flux",
            flux,
            pipeline_of(diffusers.FluxPipeline, FLOW),
            torch.bfloat16,
            "transformer",
            "flux",
            published(converters.convert_flux_transformer_checkpoint_to_diffusers, inner_dim=8),
            single={
                "flux-bfl.safetensors": {"transformer": ""},
                "flux.safetensors": {
                    "transformer": "model.diffusion_model.",
                    "text_encoder": "text_encoders.clip_l.transformer.",
                    "text_encoder_2": "text_encoders.t5xxl.transformer.",
                },
            },
        ),
        Base(
            "sdxl",
            sdxl,
            pipeline_of(diffusers.StableDiffusionXLPipeline, diffusers.EulerDiscreteScheduler),
            torch.float16,
            "unet",
            "unet",
            ldm_converter,
            clip_prefix=True,
            open_clip="text_encoder_2",
            single={
                "sdxl.safetensors": {
                    "unet": "model.diffusion_model.",
                    "text_encoder": "conditioner.embedders.0.transformer.",
                    "text_encoder_2": "conditioner.embedders.1.model.",
                }
            },
        ),
        Base(
            "sd3",
            sd3,
            pipeline_of(diffusers.StableDiffusion3Pipeline, FLOW),
            torch.float16,
            "transformer",
            "sd3",
            published(converters.convert_sd3_transformer_checkpoint_to_diffusers),
            single={
                "sd3.safetensors": {
                    "transformer": "model.diffusion_model.",
                    "text_encoder": "text_encoders.clip_l.transformer.",
                    "text_encoder_2": "text_encoders.clip_g.transformer.",
                    "text_encoder_3": "text_encoders.t5xxl.transformer.",
                }
            },
        ),
        Base(
            "wan",
            wan,
            pipeline_of(diffusers.WanImageToVideoPipeline, FLOW),
            torch.bfloat16,
            "transformer",
            "wan",
            published(converters.convert_wan_transformer_to_diffusers),
            single={"wan.safetensors": {"transformer": ""}},
        ),
        Base(
            "qwen",
            qwen_image,
            pipeline_of(diffusers.QwenImagePipeline, FLOW),
            torch.bfloat16,
            "transformer",
            "same",
            lambda state, model: state,
            single={"qwen.safetensors": {"transformer": "model.diffusion_model."}},
        ),
        Base(
            "hunyuan",
            hunyuan_video,
            pipeline_of(diffusers.HunyuanVideoPipeline, FLOW),
            torch.bfloat16,
            "transformer",
            "hunyuan_video",
            published(converters.convert_hunyuan_video_transformer_to_diffusers, hidden_size=8),
            single={"hunyuan.safetensors": {"transformer": ""}},
        ),
        Base(
            "zimage",
            z_image,
            pipeline_of(diffusers.ZImagePipeline, FLOW),
            torch.bfloat16,
            "transformer",
            "z_image",
            published(converters.convert_z_image_transformer_checkpoint_to_diffusers),
            single={"zimage.safetensors": {"transformer": "model.diffusion_model."}},
        ),
    ]
}
