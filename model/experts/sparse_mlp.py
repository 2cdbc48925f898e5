"""An MLP of experts: each token is read by a few routed ones and by the shared one, and none is dropped."""

from collections.abc import Callable, Iterable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..config.size import expert_size
from ..loss import matmul_dtype
from .activation import activate
from .grouped import grouped_linear, has_grouped_product
from .routing import Router, Routing

Read = Callable[[Tensor], Tensor]
FEW_ROWS = 512  # of which a GPU without a grouped product may compute all experts, as a CUDA graph needs


class DenseMLP(Protocol):
    """What is needed of the shared expert, an MLP without biases."""

    up: nn.Linear
    down: nn.Linear


def _as_they_are(weight: Tensor) -> Tensor:
    return weight


class Experts(nn.Module):
    """The routed experts' weights, stacked, and their sum for each token."""

    def __init__(self, hidden_size: int, inner: int, num_experts: int, kind: str):
        super().__init__()
        self.kind = kind
        rows = 2 * inner if kind == "swiglu" else inner
        self.up = nn.Parameter(torch.empty(num_experts, rows, hidden_size))
        self.down = nn.Parameter(torch.empty(num_experts, hidden_size, inner))

    def forward(self, x: Tensor, routing: Routing, read: Read = _as_they_are) -> Tensor:
        """States (N, D) and their routing -> (N, D), the weighted sum of what each token's experts make of it.

        Tokens are sorted by expert and put back by gathers alone, which are deterministic on every device.
        """
        if x.is_cuda and len(x) <= FEW_ROWS and not has_grouped_product(x.to(matmul_dtype(x)), self.up):
            return self.of_all(x, routing, read)
        count, chosen = routing.indices.shape
        order = routing.indices.flatten().argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        dtype = matmul_dtype(x)
        rows = x.to(dtype)[:, None].expand(count, chosen, -1).flatten(0, 1)[order]
        rows = self.of_sorted(rows, routing.load.cumsum(0).to(torch.int32), read)
        return (rows[back].view(count, chosen, -1) * routing.weights[..., None]).sum(dim=1).to(dtype)

    def of_all(self, x: Tensor, routing: Routing, read: Read = _as_they_are) -> Tensor:
        """The same sum by every expert's product with every token: shapes depend on no token."""
        dtype = matmul_dtype(x)
        up, down = read(self.up).to(dtype), read(self.down).to(dtype)
        made = activate(x.to(dtype) @ up.mT, self.kind) @ down.mT  # (E, N, D)
        weights = torch.zeros_like(routing.logits).scatter(1, routing.indices, routing.weights)
        return (made * weights.T[..., None]).sum(dim=0).to(dtype)

    def of_sorted(self, rows: Tensor, ends: Tensor, read: Read = _as_they_are) -> Tensor:
        """Rows (M, D) sorted by expert, whose groups end at `ends` (E,) -> (M, D)."""
        up, down = read(self.up).to(rows.dtype), read(self.down).to(rows.dtype)
        return grouped_linear(activate(grouped_linear(rows, up, ends), self.kind), down, ends)


class SparseMLP(nn.Module):
    """A router, routed experts, and a shared expert that reads every token, or none."""

    shared: nn.Module | None

    def __init__(self, config: ModelConfig, shared: nn.Module | None):
        super().__init__()
        self.router = Router(config.hidden_size, config.num_experts, config.experts_per_token)
        self.experts = Experts(config.hidden_size, expert_size(config), config.num_experts, config.mlp)
        self.shared = shared
        self.routing: Routing | None = None  # of the micro-batch that is trained on, until it is taken

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        states = x.flatten(0, -2)
        routing = self.router(states)
        if self.training and torch.is_grad_enabled():
            self.routing = routing
        mixed = self.experts(states, routing).view(x.shape)
        return mixed if self.shared is None else mixed + self.shared(x)

    def frozen(self, x: Tensor) -> Tensor:
        """Like forward, without gradient to the weights, and without counting loads."""
        states = x.flatten(0, -2)
        mixed = self.experts(states, self.router(states, Tensor.detach), Tensor.detach).view(x.shape)
        if self.shared is None:
            return mixed
        dense = cast(DenseMLP, self.shared)
        up, down = dense.up, dense.down
        inner = activate(nn.functional.linear(x, up.weight.detach()), self.experts.kind)
        return mixed + nn.functional.linear(inner, down.weight.detach())

    def active_routed_weights(self) -> int:
        """The weights of the routed experts that read a token."""
        return self.router.experts_per_token * (self.experts.up[0].numel() + self.experts.down[0].numel())

    def active_weights(self) -> int:
        """The weights that read a token: the router's, its experts' and the shared expert's."""
        others = [self.router] if self.shared is None else [self.router, self.shared]
        return self.active_routed_weights() + sum(p.numel() for module in others for p in module.parameters())


def sparse_layers(blocks: Iterable[nn.Module]) -> list[SparseMLP]:
    """The MLPs of experts among the blocks' MLPs."""
    return [mlp for mlp in [block.get_submodule("mlp") for block in blocks] if isinstance(mlp, SparseMLP)]
