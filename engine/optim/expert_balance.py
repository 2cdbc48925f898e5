"""The biases that keep experts' loads even: moved once a step by the loads over all ranks, without gradient (balancing
without an auxiliary loss, arXiv 2408.15664). They are buffers of the model, which snapshots hold."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from model.experts import SparseMLP, max_violation


class ExpertBalance:
    """Moves the biases of `layers` by `rate` a step (auxiliary.expert_bias_rate)."""

    def __init__(self, layers: Sequence[SparseMLP], rate: float):
        self._biases, self._rate = [layer.router.expert_bias for layer in layers], rate

    @torch.no_grad()
    def after_step(self, load: torch.Tensor) -> torch.Tensor:
        """Move each bias against its expert's deviation from the mean of `load`, (layers, E) int64 on the CPU, the same
        on all ranks. Returns the layers' MaxVio (layers,) in fp64."""
        # Whole numbers, so that an even load is no deviation.
        signs = (load.sum(dim=1, keepdim=True) - load * load.shape[1]).sign()
        for bias, sign in zip(self._biases, signs.to(self._biases[0].device, torch.float32), strict=True):
            bias.add_(sign, alpha=self._rate)
        return max_violation(load)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Undo at the end of the block what steps in it change."""
        before = [bias.clone() for bias in self._biases]
        yield
        for bias, old in zip(self._biases, before, strict=True):
            bias.copy_(old)
