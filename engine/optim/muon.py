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
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from engine.optim import soap
from engine.optim.orthogonal import Coefficients, coefficients, orthogonal
from engine.optim.schedule import MOMENTUM

ROW_MEAN_SQUARES = 0.95  # share that an average of a row's squares keeps at a step


Matrices: TypeAlias = tuple[int, int, int]  # of one parameter: (number, rows, columns)


class Fragment(NamedTuple):
    """The part of one parameter that a rank holds."""

    shape: tuple[int, ...]  # of the parameter; here that of its matrices
    start: int  # offset in the parameter, in elements
    place: int  # offset in the flat tensor
    numel: int  # 0: other ranks hold the parameter
    shared: bool  # several ranks hold a part of the parameter


@dataclass(frozen=True)
class MuonSettings:
    """What a step of Muon is."""

    nesterov: bool = True  # look ahead: the gradient counts once more beside the momentum
    cautious: bool = False  # decay only weights that the update makes smaller (arXiv 2510.12402)
    normalise_rows: bool = False  # NorMuon (arXiv 2510.05491)
    soap: bool = False  # updates are scaled in the eigenbasis of the gradients first; not with normalise_rows
    polynomials: tuple[Coefficients, ...] = coefficients("quintic", 5)

    @property
    def state(self) -> tuple[str, ...]:
        """The names of what is kept for a parameter beside its momentum, as tensors of its shape."""
        if self.soap:
            return ("exp_avg_sq", *soap.STATE)
        return ("exp_avg_sq",) if self.normalise_rows else ()


class MuonAdamW(torch.optim.AdamW):
    """Groups with a true `muon` are updated by Muon, the others by fused AdamW.

    matrices: of the parameters of these groups, by name; dtype: of the matrix products. A group's `momentum`, if it has
    one, takes the place of MOMENTUM. Whoever replaces the parameters by flat tensors sets `fragments`, in the same
    order on all ranks, and `sum_over_ranks` (in place).
    """

    def __init__(
        self,
        groups: list[dict],
        matrices: dict[str, Matrices],
        learning_rate: float,
        dtype: torch.dtype,
        settings: MuonSettings | None = None,
    ):
        super().__init__(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
        self.matrices, self.dtype, self.settings = matrices, dtype, settings or MuonSettings()
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
                state["step"] = torch.zeros(())
                state |= {key: torch.zeros_like(parameter) for key in ("exp_avg", *self.settings.state)}
            state["step"] += 1
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["exp_avg"] for parameter in parameters]
        momentum = groups[0].get("momentum", MOMENTUM)
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        if self.settings.nesterov:
            updates = torch._foreach_lerp(gradients, momenta, momentum)
        else:
            updates = [each.clone() for each in momenta]
        pieces = []
        for parameter, update in zip(parameters, updates, strict=True):
            flats = [update.view(-1), *(self.state[parameter][key].view(-1) for key in self.settings.state)]
            if self.settings.soap:
                flats.append(parameter.grad.view(-1))
            pieces += [(flats, fragment) for fragment in self.fragments[parameter]]
        self._orthogonalise(pieces, step=int(self.state[parameters[0]]["step"]))
        for group in groups:
            own, updates = updates[: len(group["params"])], updates[len(group["params"]) :]
            decay = group["lr"] * group["weight_decay"]
            if self.settings.cautious:
                for parameter, update in zip(group["params"], own, strict=True):
                    parameter.mul_(torch.where(update * parameter > 0, 1 - decay, 1.0))
            else:
                torch._foreach_mul_(group["params"], 1 - decay)
            torch._foreach_add_(group["params"], own, alpha=-group["lr"])

    def _orthogonalise(self, pieces: list[tuple[list[Tensor], Fragment]], step: int) -> None:
        """Replace each fragment's elements in its flat tensor by those of its orthogonalised matrix.

        A piece's tensors are the update, what the settings keep for it, which is replaced too, and with SOAP the
        gradient.
        """
        sizes = [math.prod(fragment.shape) for flats, fragment in pieces if fragment.shared for _ in flats]
        shared = pieces[0][0][0].new_zeros(sum(sizes))
        shared_wholes = iter(shared.split(sizes))
        alike: defaultdict[tuple[int, ...], list[tuple[list[Tensor], list[Tensor], Fragment]]] = defaultdict(list)
        for flats, fragment in pieces:
            places = wholes = [flat[fragment.place : fragment.place + fragment.numel] for flat in flats]
            if fragment.shared:
                wholes = [next(shared_wholes) for _ in flats]
                for place, whole in zip(places, wholes, strict=True):
                    whole[fragment.start : fragment.start + fragment.numel] = place
            if fragment.numel:
                alike[fragment.shape[1:]].append((places, wholes, fragment))
        if sizes:
            self.sum_over_ranks(shared)
        for entries in alike.values():  # matrices of one shape in one batched product
            tensors = (
                torch.cat([wholes[number].view(fragment.shape) for _, wholes, fragment in entries])
                for number in range(len(entries[0][0]))
            )
            made = self._made(*tensors, step=step)
            numbers = [fragment.shape[0] for *_, fragment in entries]
            for (places, _, fragment), *results in zip(entries, *(whole.split(numbers) for whole in made), strict=True):
                for place, result in zip(places, results, strict=False):  # the gradient stays
                    place.copy_(result.reshape(-1)[fragment.start : fragment.start + fragment.numel])

    def _made(self, matrices: Tensor, *kept: Tensor, step: int) -> list[Tensor]:
        """The updates of matrices (N, R, C), and what is kept for them from now on."""
        if self.settings.soap:
            squares, gram, basis, gradients = kept
            matrices, *kept_now = soap.preconditioned(matrices, gradients, squares, gram, basis, step)
            return [orthogonal(matrices, self.dtype, self.settings.polynomials), *kept_now]
        made = orthogonal(matrices, self.dtype, self.settings.polynomials)
        return normalised_rows(made, kept[0]) if kept else [made]


def normalised_rows(matrices: Tensor, squares: Tensor) -> list[Tensor]:
    """Matrices (N, R, C) and running averages of their rows' mean squares, expanded to (N, R, C) -> the matrices with
    each row divided by the root of its new average and as large as before as a whole, and the new averages."""
    means = matrices.square().mean(dim=-1, keepdim=True).expand_as(matrices)
    squares = squares.lerp(means, 1 - ROW_MEAN_SQUARES)
    divided = matrices / squares.sqrt().clamp_min(1e-10)
    size = [each.norm(dim=(1, 2), keepdim=True) for each in (matrices, divided)]
    return [divided * (size[0] / size[1].clamp_min(1e-10)), squares]
