"""Merged values in float64: by the formula of kohya's merge scripts, and by diffusers itself."""

import torch

from bases import of_component


def double(state: dict) -> dict:
    return {name: t.double() for name, t in state.items()}


def by_formula(base, state: dict, adapters, weights) -> dict:
    """W + weight · alpha/rank · up·down, where a fused module changes as a whole."""
    merged, names = double(state), base.names()
    native = names.to_native(double(of_component(state, base.denoiser)))
    for layers, weight in zip(adapters, weights):
        for layer in layers:
            if layer.native:
                add(native, f"{layer.module}.weight", weight * layer.delta)
    merged.update({f"{base.denoiser}/{name}": t for name, t in names.from_native(native).items()})
    for layers, weight in zip(adapters, weights):
        for layer in layers:
            if not layer.native:
                add(merged, base.parameter(layer), weight * layer.delta)
    return merged


def add(state, name, delta):
    weight = state[name]
    assert delta.numel() == weight.numel(), (name, delta.shape, weight.shape)
    state[name] = weight + delta.reshape(weight.shape)


def by_diffusers(base, paths, weights) -> dict:
    """load_lora_weights and fuse_lora on the pipeline in float64."""
    pipe = base.build()
    for model in models(pipe):
        model.double()
    for index, (path, weight) in enumerate(zip(paths, weights)):
        name = f"adapter{index}"
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        pipe.fuse_lora(
            components=pipe._lora_loadable_modules, lora_scale=weight, adapter_names=[name]
        )
        pipe.unload_lora_weights()
    return base.state(pipe)


def models(pipe):
    return [model for model in pipe.components.values() if isinstance(model, torch.nn.Module)]


PRECISION = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126)}


def round_to(t, dtype):
    """The nearest value of the dtype, ties to even. torch's own cast rounds twice, by float32."""
    bits, smallest = PRECISION[dtype]
    exponent = torch.frexp(t)[1].clamp(min=smallest + 1).double()
    quantum = torch.exp2(exponent - bits)
    rounded = (torch.round(t / quantum) * quantum).to(dtype)
    assert torch.isfinite(rounded).all()
    return rounded


def changed(state: dict, merged: dict) -> dict:
    """The tensors that differ from the base, rounded once to its dtype."""
    rounded = {name: round_to(t, state[name].dtype) for name, t in merged.items()}
    return {name: t for name, t in rounded.items() if not torch.equal(t, state[name])}


def check_exact(merged: dict):
    """Every value is a multiple of 2**-40 below 2**12, so float64 has rounded nothing."""
    for name, t in merged.items():
        grains = t * 2.0**40
        assert torch.equal(grains, grains.round()) and t.abs().max() < 2**12, name
