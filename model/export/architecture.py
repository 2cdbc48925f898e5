"""An architecture of another program: which models have it, and what it calls their tensors.

A tensor's name is split into the module and the parameter: `names` says what the modules are called there, with {} for
the number of the block. Where there are several names, each has an equal part of the rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import ADDITIONS, ModelConfig
from .errors import ExportError

VOCABULARY = ("tokens.weight", "lm_head.weight")  # tensors with a row for each token id, and padding after them
Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Architecture:
    """What the rows of a table of architectures have in common."""

    name: str
    options: Mapping[str, tuple[Any, ...]]  # of ModelConfig: the values with which a model is one of these
    names: Names

    def differences(self, config: ModelConfig) -> list[str]:
        """What keeps a model from being one of these, in words."""
        options = {**self.options, **{key: (ADDITIONS[key],) for key in config.additions}}
        return [
            f"{key} {' or '.join(map(str, values))}"
            for key, values in options.items()
            if getattr(config, key) not in values
        ]

    def their_names(self, name: str) -> tuple[str, ...]:
        """What the parts of our tensor `name` are called, from the first row to the last."""
        module, parameter = name.replace("in_proj_", "in_proj.").rsplit(".", 1)
        number = re.search(r"\.(\d+)\.", module)
        block = number[1] if number else ""
        generic = re.sub(r"\.\d+\.", ".{}.", module, count=1)
        return tuple(f"{theirs.format(block)}.{parameter}" for theirs in self.names[generic])


Row = TypeVar("Row", bound=Architecture)


def choose(table: Sequence[Row], config: ModelConfig, program: str) -> Row:
    """The row of `table` that the model is one of. Raises ExportError, which names the nearest one, where none is."""
    nearest = min(table, key=lambda row: len(row.differences(config)))
    if not (differences := nearest.differences(config)):
        return nearest
    has = ", ".join(f"{key} {getattr(config, key)}" for key in (*nearest.options, *config.additions))
    raise ExportError(
        f"{program} has no architecture for a model of {has}; the nearest one, {nearest.name}, needs "
        f"{', '.join(differences)}."
    )


def exported_tensors(weights: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """The trunk's tensors, without the padding rows of the vocabulary and without the lookahead core."""
    return {
        name: tensor[:vocab_size] if name in VOCABULARY else tensor
        for name, tensor in weights.items()
        if not name.startswith("latent.")
    }


def with_padding(name: str, tensor: Tensor, padded_vocab_size: int) -> Tensor:
    """Zeros as the rows that pad the vocabulary, which no text and no loss reads."""
    if name not in VOCABULARY:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(padded_vocab_size - len(tensor), tensor.shape[1])])
