"""Experts that are spread over ranks, as far as it is not DeepSpeed's: which tokens go where, what experts make of
those that arrive, and which parameters are theirs."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from model.experts import Routing, activate


def places(routing: Routing) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each token's choices (K, N) the expert, the place among the tokens of that expert, and the weight."""
    indices, weights = routing.indices.T.contiguous(), routing.weights.T.contiguous()
    chosen = nn.functional.one_hot(indices.flatten(), len(routing.load))
    place = (chosen.cumsum(dim=0) - 1).gather(1, indices.flatten()[:, None])
    return indices, place.view(indices.shape), weights


def read_tokens(tokens: torch.Tensor, up: torch.Tensor, down: torch.Tensor, kind: str) -> torch.Tensor:
    """Tokens (ranks, experts, room, D) from all ranks for this rank's experts, with their weights -> the same shape."""
    rows = tokens.transpose(0, 1).flatten(1, 2)
    rows = activate(rows @ up.to(rows.dtype).mT, kind) @ down.to(rows.dtype).mT
    return rows.unflatten(1, (len(tokens), -1)).transpose(0, 1).contiguous()


class Callback(nn.Module):
    """A function where DeepSpeed's MoE layer has a module."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def _set_ep_group(self, group: Any) -> None:
        """The layer gives its gate the group of ranks."""


def is_spread(parameter: torch.Tensor) -> bool:
    """Whether each rank has another part of a parameter: how DeepSpeed marks experts."""
    return not getattr(parameter, "allreduce", True)


def without_experts(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a parameter group in two: ZeRO divides experts that are spread among fewer ranks than the rest."""
    spread = [parameter for parameter in group["params"] if is_spread(parameter)]
    if len(spread) < len(group["params"]):
        yield group | {"params": [parameter for parameter in group["params"] if not is_spread(parameter)]}
    if spread:
        yield group | {"params": spread, "moe": True, "name": spread[0].group_name}


def spreads_experts(model: nn.Module) -> bool:
    """Whether each rank has a part of the model's experts only."""
    return any(map(is_spread, model.parameters()))
