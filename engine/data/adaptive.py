"""Adaptive source weights during a run: sums losses, gets new weights from sources/loading/adaptive.py, logs them."""

import torch

from engine.data.source_losses import mean_losses
from engine.events import EventLog
from model.config import AuxiliaryConfig
from sources.config import DataConfig
from sources.loading.adaptive import AdaptiveState, AdaptiveWeights
from sources.registry import OpenedSources

DELAY_STEPS = 8  # until new source weights apply; the loader prefetches fewer batches


class AdaptiveRunState(AdaptiveState):
    sums: dict[str, list[int]]  # by source: NLL in source_losses.UNIT nats, and labels, since the last weights


class AdaptiveSources:
    """Every rank has one, gets the same losses, and so computes the same weights."""

    def __init__(self, auxiliary: AuxiliaryConfig, data: DataConfig, log: EventLog, saved: AdaptiveRunState | None):
        self.weights = AdaptiveWeights(
            data.weights(),
            interval_tokens=auxiliary.adaptive_interval_tokens,
            min_weight=auxiliary.adaptive_min_weight,
            max_weight=auxiliary.adaptive_max_weight,
            smoothing=auxiliary.adaptive_smoothing,
            delay=DELAY_STEPS,
        )
        self._log = log
        self._names = [spec.source_name for spec in data.sources]
        sums = saved["sums"] if saved else {}
        # (2, sources) int64 since the last weights, as in StepResult.loss_sums
        self._loss_sums = torch.tensor([sums.get(name, [0, 0]) for name in self._names]).T.contiguous()
        if saved is not None:
            self.weights.load(saved)

    def after_step(self, batch_number: int, loss_sums: torch.Tensor, opened: OpenedSources) -> None:
        """Add a step's StepResult.loss_sums; at an interval's end, change the weights."""
        self._loss_sums += loss_sums
        if not self.weights.after_step(batch_number, int(loss_sums[1].sum())):
            return
        _, by_source = mean_losses(self._loss_sums)
        self._loss_sums.zero_()
        losses = {name: loss for name, loss in zip(self._names, by_source, strict=True) if loss is not None}
        first, weights = self.weights.update(batch_number, losses, dropped=opened.failures)
        shares = ", ".join(f"{name} {weight / sum(weights.values()):.1%}" for name, weight in weights.items())
        message = f"token shares from batch {first:,} on: {shares}"
        self._log.write("source", name="all", what="weights", message=message, weights=weights)

    def state(self) -> AdaptiveRunState:
        """Return what a restart needs."""
        sums = dict(zip(self._names, self._loss_sums.T.tolist(), strict=True))
        return {**self.weights.state(), "sums": sums}
