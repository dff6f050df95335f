"""A case: adapters, a base, and the merged values."""

from dataclasses import dataclass, field
from typing import Callable

import torch

from adapters import random_layers


@dataclass
class Adapter:
    """layers makes the factors, write gives them the names of a file."""

    layers: Callable
    write: Callable
    metadata: dict = field(default_factory=dict)
    file: str = "adapter.safetensors"
    save: Callable | None = None  # instead of both: writes the file, and returns its layers


@dataclass
class Case:
    """One merge, on a pipeline's directory and on single files.

    on are the bases with what to leave out: {file: component to merge, or None for all}.
    by_diffusers says that diffusers can read the adapter for these tiny models. group names cases
    with equal results.
    """

    name: str
    base: str
    adapters: list[Adapter]
    comment: str
    on: dict | None = None
    weights: list[float] | None = None
    by_diffusers: bool = True
    group: str = ""
    options: dict = field(default_factory=dict)


def layers(pattern, **options):
    return lambda base, case: random_layers(base, case, pattern, **options)


def on_rank(number: int) -> int:
    return (1, 2, 4)[number % 3]


def on_alpha(number: int) -> float:
    return (1.0, 0.5, 6.0, 4.0)[number % 4]


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
