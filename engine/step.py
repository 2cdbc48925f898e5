"""What one optimizer step does, and what is counted on the way."""

from typing import Any

import deepspeed
import torch

from engine import zero
from engine.ranks import Ranks
from sources.loader import Batch


def train_step(
    engine: deepspeed.DeepSpeedEngine, batch: Batch, labels_in_step: int, tally: "Tally", clip: float, ranks: Ranks
) -> Any:
    """Forward, backward and the optimizer's step over this rank's share; returns the global gradient norm.

    The gradient is that of the mean over all `labels_in_step` labels, whichever rank and pass they are in: DeepSpeed
    divides by the passes and averages over ranks, so each sum is scaled by both over the number of labels.
    """
    scale = len(batch.input_ids) * ranks.world_size / labels_in_step
    grad_norm = None
    for input_ids, labels, source_ids in zip(batch.input_ids, batch.labels, batch.source_ids, strict=True):
        input_ids = input_ids.to(ranks.device, non_blocking=True)
        labels = labels.to(ranks.device, non_blocking=True)
        loss_sum, token_nll = engine(input_ids, labels)
        engine.backward(loss_sum * scale)
        tally.add(token_nll, labels, source_ids.to(ranks.device, non_blocking=True))
        if engine.is_gradient_accumulation_boundary():
            grad_norm = zero.step(engine, clip)
        else:
            engine.step()
    return grad_norm


class Tally:
    """Sums since the last report. Losses stay on the device until a report asks for them."""

    def __init__(self, num_sources: int, device: torch.device):
        self._nll = torch.zeros(num_sources, dtype=torch.float64, device=device)
        self._labels = torch.zeros(num_sources, dtype=torch.float64, device=device)
        self.reset()

    def reset(self) -> None:
        self._nll.zero_()
        self._labels.zero_()
        self.steps = self.tokens = 0
        self.seconds = self.wait_seconds = 0.0

    def add(self, token_nll: torch.Tensor, labels: torch.Tensor, source_ids: torch.Tensor) -> None:
        """Adds one pass: token_nll and labels (B, T), source_ids (B,)."""
        self._nll.index_add_(0, source_ids, token_nll.sum(1).double())
        self._labels.index_add_(0, source_ids, (labels != -100).sum(1).double())

    def waited(self, wait: float, whole: float) -> None:
        self.wait_seconds += wait
        self.seconds += whole

    def losses(self) -> torch.Tensor:
        """(2, sources): this rank's summed NLL in nats, and its label counts, on the CPU."""
        return torch.stack([self._nll, self._labels]).cpu()
