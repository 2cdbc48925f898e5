"""A factor for each block, fitted where rows become longer: on attention's logits, or on what the block adds.

Longer rows make attention less sharp, and not in all layers alike. The factors start at 1, learn for the first tenth of
what is left of the run (engine/optim/schedule.py) and stay. They multiply what weights multiply too, so that a finished
model is one without factors (`folded`): no other program and no kernel has to know them.
"""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig

LAYER_FACTOR = "layer_factor"  # the parameter's name, in a block or in its attention


def add_layer_factors(blocks: Iterable[nn.Module], config: ModelConfig) -> None:
    """Give each block its factor, (1,), where the configuration asks for them."""
    if config.layer_rescaling == "none":
        return
    for block in blocks:
        owner = cast(nn.Module, block.attention) if config.layer_rescaling == "attention" else block
        owner.register_parameter(LAYER_FACTOR, nn.Parameter(torch.ones(1)))


def folded(weights: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], ModelConfig]:
    """A model's state dict without factors, and its configuration: the same model."""
    if config.layer_rescaling == "none":
        return dict(weights), config
    result = {name: tensor for name, tensor in weights.items() if not name.endswith(LAYER_FACTOR)}
    for name, factor in weights.items():
        if not name.endswith(LAYER_FACTOR):
            continue
        owner = name.removesuffix(LAYER_FACTOR)
        if config.layer_rescaling == "residual":
            added = ("attention.out_proj.", "mlp.down.", "mlp.shared.down.", "mlp.experts.down")
            scaled = [other for other in result if other.startswith(tuple(owner + part for part in added))]
        elif config.qk_norm:
            scaled = [f"{owner}query_norm.weight"]
        else:
            scaled = []
            for other in (f"{owner}in_proj_weight", f"{owner}in_proj_bias"):
                if other in result:
                    query, *others = result[other].chunk(3)
                    result[other] = torch.cat([query * factor, *others])
        result |= {other: result[other] * factor for other in scaled}
    return result, config.model_copy(update={"layer_rescaling": "none"})
