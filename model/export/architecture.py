"""An architecture of another program: which models have it, and what it calls their tensors.

A tensor's name is split into the module and the parameter: `names` says what the modules are called there, with {} for
the number of the block, and of the expert. Where there are several names, each has an equal part of the rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import ADDITIONS, ModelConfig
from .errors import ExportError

VOCABULARY = ("tokens.weight", "lm_head.weight")  # tensors with a row for each token id, and padding after them
OUR_BIAS, THEIR_BIAS = "expert_bias", "e_score_correction_bias"  # of a router
Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Architecture:
    """What the rows of a table of architectures have in common."""

    name: str
    options: Mapping[str, tuple[Any, ...]]  # of ModelConfig: the values with which a model is one of these
    names: Names
    sparse: bool = field(default=False, kw_only=True)  # its MLPs have experts

    def differences(self, config: ModelConfig) -> list[str]:
        """What keeps a model from being one of these, in words."""
        options = {**self.options, **{key: (ADDITIONS[key],) for key in config.additions}}
        found = [
            f"{key} {' or '.join(map(str, values))}"
            for key, values in options.items()
            if getattr(config, key) not in values
        ]
        if self.sparse != bool(config.num_experts):
            found.append("num_experts 2 or more" if self.sparse else "num_experts 0")
        elif self.sparse and not config.shared_experts:
            found.append("shared_experts 1 or more")
        return found

    def their_names(self, name: str) -> tuple[str, ...]:
        """What the parts of our tensor `name` are called, from the first row to the last."""
        module, parameter = name.replace("in_proj_", "in_proj.").rsplit(".", 1)
        numbers = re.findall(r"\.(\d+)\.", module)
        generic = re.sub(r"\.\d+\.", ".{}.", module)
        return tuple(f"{theirs.format(*numbers)}.{parameter}" for theirs in self.names[generic])


Row = TypeVar("Row", bound=Architecture)


def choose(table: Sequence[Row], config: ModelConfig, program: str) -> Row:
    """The row of `table` that the model is one of. Raises ExportError, which names the nearest one, where none is."""
    sparse = bool(config.num_experts)
    nearest = min(table, key=lambda row: (row.sparse != sparse, len(row.differences(config))))
    if not (differences := nearest.differences(config)):
        return nearest
    keys = [*nearest.options, *(("num_experts", "shared_experts") if sparse else ()), *config.additions]
    has = ", ".join(f"{key} {getattr(config, key)}" for key in keys)
    raise ExportError(
        f"{program} has no architecture for a model of {has}; the nearest one, {nearest.name}, needs "
        f"{', '.join(differences)}."
    )


def exported_tensors(weights: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """The trunk's tensors, without the padding rows of the vocabulary and without the lookahead core; of experts each
    by itself."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith("latent."):
            continue
        module, _, parameter = name.rpartition(".")
        if module.endswith(".experts"):
            tensors |= {f"{module}.{n}.{parameter}.weight": expert for n, expert in enumerate(tensor)}
        elif parameter == OUR_BIAS:
            tensors[f"{module}.{THEIR_BIAS}"] = tensor
        else:
            tensors[name] = tensor[:vocab_size] if name in VOCABULARY else tensor
    return tensors


def imported_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of exported_tensors, but for padding rows and the lookahead core."""
    weights: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*\.experts)\.\d+\.(\w+)\.weight", name):
            experts.setdefault(f"{match[1]}.{match[2]}", []).append(tensor)
        else:
            weights[re.sub(rf"\.{THEIR_BIAS}$", f".{OUR_BIAS}", name)] = tensor
    return weights | {name: torch.stack(each) for name, each in experts.items()}


def with_padding(name: str, tensor: Tensor, padded_vocab_size: int) -> Tensor:
    """Zeros as the rows that pad the vocabulary, which no text and no loss reads."""
    if name not in VOCABULARY:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(padded_vocab_size - len(tensor), tensor.shape[1])])
