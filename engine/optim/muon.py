"""Muon (Jordan et al., 2024) for hidden matrices beside AdamW for everything else, under any ZeRO stage.

Muon steps along the orthogonalised momentum of a whole matrix. ZeRO stages 1 to 3 give an optimizer flat pieces of
many parameters, so `fragments` says which matrices they hold; matrices that several ranks share are assembled by one
sum over the ranks.

Notable here
- Updates have the RMS of AdamW's (arXiv 2502.16982), so both use the same learning rate and decay.
- A fused projection counts as the matrices that it fuses.
- Momentum is kept as `exp_avg`, an average like AdamW's: a run may switch from AdamW to Muon and keep it.
- torch.optim.Muon needs whole matrices, and DeepSpeed's Muon rewrites gradients before they can be judged and clipped.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

MOMENTUM, ITERATIONS = 0.95, 5
# Of x, (x x^T) x, (x x^T)^2 x: singular values are within 0.7 to 1.2 after 5 iterations.
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ADAMW_RMS = 0.2  # RMS of AdamW's updates at a learning rate of 1


Matrices: TypeAlias = tuple[int, int, int]  # of one parameter: (number, rows, columns)


class Fragment(NamedTuple):
    """The part of one parameter that a rank holds."""

    shape: tuple[int, ...]  # of the parameter; here that of its matrices
    start: int  # offset in the parameter, in elements
    place: int  # offset in the flat tensor
    numel: int  # 0: other ranks hold the parameter
    shared: bool  # several ranks hold a part of the parameter


class MuonAdamW(torch.optim.AdamW):
    """Groups with a true `muon` are updated by Muon, the others by fused AdamW.

    matrices: of the parameters of these groups, by name; dtype: of the matrix products. Whoever replaces the parameters
    by flat tensors sets `fragments`, in the same order on all ranks, and `sum_over_ranks` (in place).
    """

    def __init__(self, groups: list[dict], matrices: dict[str, Matrices], learning_rate: float, dtype: torch.dtype):
        super().__init__(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
        self.matrices, self.dtype = matrices, dtype
        self.fragments: dict[Tensor, list[Fragment]] = {}
        self.sum_over_ranks: Callable[[Tensor], object] = lambda tensor: None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        groups = self.param_groups
        # Stage 3 steps one group at a time and leaves the others empty.
        if with_muon := [group for group in groups if group.get("muon") and group["params"]]:
            self._step(with_muon)
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step(self, groups: list[dict]) -> None:
        parameters = [parameter for group in groups for parameter in group["params"]]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(parameter)
            state["step"] += 1
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["exp_avg"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        flat_updates = dict(zip(parameters, (update.view(-1) for update in updates), strict=True))
        self._orthogonalise([(flat, fragment) for p, flat in flat_updates.items() for fragment in self.fragments[p]])
        for group in groups:
            own, updates = updates[: len(group["params"])], updates[len(group["params"]) :]
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(group["params"], own, alpha=-group["lr"])

    def _orthogonalise(self, fragments: list[tuple[Tensor, Fragment]]) -> None:
        """Replace each fragment's elements in its flat tensor by those of its orthogonalised matrix."""
        sizes = [math.prod(fragment.shape) for _, fragment in fragments if fragment.shared]
        shared = fragments[0][0].new_zeros(sum(sizes))
        shared_wholes = iter(shared.split(sizes))
        alike: defaultdict[tuple[int, ...], list[tuple[Tensor, Tensor, Fragment]]] = defaultdict(list)
        for flat, fragment in fragments:
            place = whole = flat[fragment.place : fragment.place + fragment.numel]
            if fragment.shared:
                whole = next(shared_wholes)
                whole[fragment.start : fragment.start + fragment.numel] = place
            if fragment.numel:
                alike[fragment.shape[1:]].append((place, whole, fragment))
        if sizes:
            self.sum_over_ranks(shared)
        for entries in alike.values():  # matrices of one shape in one batched product
            matrices = torch.cat([whole.view(fragment.shape) for _, whole, fragment in entries])
            orthogonalised = orthogonal(matrices, self.dtype).split([fragment.shape[0] for *_, fragment in entries])
            for (place, _, fragment), matrix in zip(entries, orthogonalised, strict=True):
                place.copy_(matrix.reshape(-1)[fragment.start : fragment.start + fragment.numel])


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, R, C) -> (N, R, C) fp32: about the nearest matrices with orthogonal rows or columns (all singular values 0.7
    to 1.2, by Newton and Schulz's iteration), times ADAMW_RMS * sqrt(max(R, C))."""
    rows, columns = matrices.shape[1:]
    x = (matrices.mT if rows > columns else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    x = x.float() * (ADAMW_RMS * math.sqrt(max(rows, columns)))
    return x.mT if rows > columns else x
