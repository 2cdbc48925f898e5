"""What one optimizer step does, and what is counted on the way."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import deepspeed
import torch

from engine import zero
from engine.curriculum import Curriculum
from engine.ranks import Ranks
from sources.loader import Batch


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    batch: Batch,
    labels_in_step: int,
    watchers: Sequence["Watcher"],
    clip: float,
    ranks: Ranks,
    each_pass: Callable[[Iterable], Iterable] = iter,
    *,
    document_mask: bool = False,
    curriculum: Curriculum | None = None,
) -> Any:
    """Forward, backward and the optimizer's step over this rank's share; returns the global gradient norm.

    `watchers` are shown every pass's losses; with a `curriculum` rows count by how hard they are. `each_pass` hands on
    the passes and may raise to give up the step, which then has changed nothing that a snapshot holds.

    The gradient is that of the mean over all `labels_in_step` labels, whichever rank and pass they are in: DeepSpeed
    divides by the passes and averages over ranks, so each sum is scaled by both over the number of labels.
    """
    scale = len(batch.input_ids) * ranks.world_size / labels_in_step
    losses = []
    passes = (batch.input_ids, batch.labels, batch.segment_ids, batch.source_ids)
    for tensors in each_pass(zip(*passes, strict=True)):
        input_ids, labels, segment_ids, source_ids = (tensor.to(ranks.device, non_blocking=True) for tensor in tensors)
        segment_ids = segment_ids if document_mask else None
        if curriculum is None:
            loss_sum, token_nll = engine(input_ids, labels, segment_ids)
        else:
            difficulty, temperature = curriculum.thresholds, curriculum.temperature
            loss_sum, token_nll = engine(input_ids, labels, segment_ids, difficulty, temperature)
        engine.backward(loss_sum * scale)
        losses.append((token_nll.detach(), labels, source_ids))
        if not engine.is_gradient_accumulation_boundary():
            engine.step()  # counts the pass
    grad_norm = zero.step(engine, clip)
    for token_nll, labels, source_ids in losses:
        if curriculum is not None:
            curriculum.add(token_nll, labels)
        for watcher in watchers:
            watcher.add(token_nll, labels, source_ids)
    return grad_norm


LOST = 2.0**40  # nats, more than any run has; stands for a loss that is not finite


class Watcher(Protocol):
    """Whoever wants to see each pass's losses: token_nll and labels (B, T), source_ids (B,), on the device."""

    def add(self, token_nll: torch.Tensor, labels: torch.Tensor, source_ids: torch.Tensor) -> None: ...


class SourceLosses:
    """Sums of NLL and label counts by source, kept on the device until somebody asks.

    Whole numbers (of UNIT nats): their sum is the same in any order, over any ranks, and across a restart.
    """

    UNIT = 2.0**-20

    def __init__(self, num_sources: int, device: torch.device):
        self._sums = torch.zeros(2, num_sources, dtype=torch.int64, device=device)

    def add(self, token_nll: torch.Tensor, labels: torch.Tensor, source_ids: torch.Tensor) -> None:
        nll = token_nll.sum(1, dtype=torch.float64).nan_to_num(LOST, LOST, LOST) / self.UNIT
        rows = torch.stack([nll.round().long(), (labels != -100).sum(1)])
        self._sums.index_add_(1, source_ids, rows)

    def sums(self) -> torch.Tensor:
        """(2, sources) int64: this rank's summed NLL in UNIT nats, and its label counts, on the CPU."""
        return self._sums.cpu()

    def load(self, sums: torch.Tensor) -> None:
        self._sums.copy_(sums)

    def reset(self) -> None:
        self._sums.zero_()


def mean_losses(sums: torch.Tensor) -> tuple[float, list[float | None]]:
    """The mean NLL in nats over all labels of SourceLosses' sums, and by source (None: no labels)."""
    nll, labels = sums.double()
    nll = torch.where(nll * SourceLosses.UNIT >= LOST, torch.nan, nll * SourceLosses.UNIT)
    by_source = [(nll[i] / labels[i]).item() if labels[i] else None for i in range(len(labels))]
    return (nll.sum() / labels.sum()).item(), by_source


class Tally(SourceLosses):
    """What is counted since the last report."""

    def __init__(self, num_sources: int, device: torch.device):
        super().__init__(num_sources, device)
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.steps = self.tokens = 0
        self.seconds = self.wait_seconds = 0.0

    def waited(self, wait: float, whole: float) -> None:
        self.wait_seconds += wait
        self.seconds += whole
