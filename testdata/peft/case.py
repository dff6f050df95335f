"""What a case is."""

from dataclasses import dataclass

from adapters import Adapter


@dataclass
class Merge:
    name: str
    base: str
    adapters: list[Adapter]
    comment: str
    weights: list[float] | None = None
    warn: tuple = ()  # words that a warning contains
    by_peft: bool = True  # PEFT itself computes the truth
    exact: bool = False  # the truth is computed in rational arithmetic
    about: float = 0  # PEFT, which computes in F32, comes as near to the truth
    experts: dict | None = None  # stacked experts, with arguments of by_experts
    saved: bool = False  # the model has other names in memory than on disk: the truth is what PEFT saves
    via: str | None = None  # the base with a module per expert that the truth is computed on
    options: dict | None = None  # flags of loratool that the merge needs, by the names of merge.Options
    size: tuple = (0.03, 1.2)  # bounds of the relative change of each tensor


@dataclass
class Refuse:
    name: str
    base: str
    adapters: list[Adapter]
    words: list[str]  # words that the refusal contains
    comment: str
    finish: object = None  # a last change to the adapter's directory


def merge(name, base, adapter, comment, **rest):
    return Merge(name, base, [adapter], comment, **rest)


def refuse(name, base, adapter, words, comment, finish=None):
    return Refuse(name, base, [adapter], words, comment, finish)
