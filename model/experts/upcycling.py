"""Upcycling (arXiv 2212.05055): experts that start as the MLP of a dense model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import ModelConfig
from ..config.size import expert_size, inner_size, is_sparse


def upcycling_problem(config: ModelConfig) -> str | None:
    """Why no dense model can become the one that `config` describes, in words; None where one can."""
    if config.bias:
        return "its MLPs have biases, and experts have none"
    inner, width = inner_size(config.hidden_size, config.mlp), expert_size(config)
    if width > inner:
        return f"its MLPs have a width of {inner}, and experts of {width} cannot be copied from them"
    return None


def upcycled(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A dense model's weights by name -> those of the model that `config` describes, without its routers.

    Experts as wide as the MLP are copies of it; narrower ones have slices of it in turn, the first of which the shared
    expert has. `down` is scaled so that the experts of a token sum to the MLP: exactly where all are copies, else on
    average.
    """
    made, width, shared = dict(weights), expert_size(config), config.shared_experts
    for layer in range(config.num_layers):
        name = f"blocks.{layer}.mlp"
        if not is_sparse(config, layer):
            continue
        up, down = made.pop(f"{name}.up.weight"), made.pop(f"{name}.down.weight")
        inner = down.shape[1]
        units = (torch.arange((shared + config.num_experts) * width, device=down.device) % inner).split(width)
        gates = up.view(len(up) // inner, inner, -1)  # with SwiGLU two, the gate before the value
        ups = [gates[:, own] for own in units]
        downs = [down[:, own] * (inner / (width * (config.experts_per_token + shared))) for own in units]
        made[f"{name}.experts.up"] = torch.stack([each.flatten(0, 1) for each in ups[shared:]])
        made[f"{name}.experts.down"] = torch.stack(downs[shared:])
        if shared:  # they are side by side
            made[f"{name}.shared.up.weight"] = torch.cat(ups[:shared], dim=1).flatten(0, 1)
            made[f"{name}.shared.down.weight"] = torch.cat(downs[:shared], dim=1)
    return made
