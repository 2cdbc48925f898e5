"""What a run logs about its steps: the figures of a window of steps, and steps that were spikes or skipped."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from engine.data.source_losses import mean_losses
from engine.device.memory import memory_in_use
from engine.events import EventLog
from engine.run.stability import StabilityGuard, Verdict
from engine.run.state import Progress
from engine.run.step import FIGURES, StepResult

NOTHING: Mapping[str, Any] = MappingProxyType({})


class StepWindow:
    """Sums over the steps since the last `step` event, over all ranks; a skipped step only takes time."""

    def __init__(self, num_sources: int):
        self.loss_sums = torch.zeros(2, num_sources, dtype=torch.int64)
        self.auxiliary = torch.zeros(len(FIGURES), 2, dtype=torch.float64)
        self.max_violation: torch.Tensor | float = 0.0
        self.steps = self.tokens = self.core_left_out = 0
        self.grad_norm: float | None = None  # of the latest step, as is the core's
        self.core_grad_norm: float | None = None
        self.seconds = self.wait_seconds = 0.0

    def add(self, step: StepResult) -> None:
        self.loss_sums += step.loss_sums
        self.auxiliary += step.auxiliary
        if step.max_violation is not None:
            self.max_violation = self.max_violation + step.max_violation
        self.steps += 1
        self.tokens += step.labels
        self.grad_norm, self.core_grad_norm = step.grad_norm, step.core_grad_norm
        self.core_left_out += step.core_grad_norm is not None and math.isnan(step.core_grad_norm)


@dataclass(frozen=True)
class RunFigures:
    """What step events are relative to."""

    token_budget: int
    flops_per_token: float
    peak_flops: float | None  # FLOP/s of all processes together, None where unknown
    has_core: bool
    expert_blocks: tuple[int, ...] = ()  # the numbers of the blocks with experts, from 0


class Telemetry:
    """Logs `step`, `spike` and `skip` events; only rank 0's are written."""

    def __init__(
        self,
        source_names: list[str],
        figures: RunFigures,
        interval_seconds: float,
        log: EventLog,
        device: torch.device,
    ):
        self.source_names, self.figures, self.interval, self.log = source_names, figures, interval_seconds, log
        self.device = device
        self.train_seconds = 0.0  # since the start, without evaluations and saves
        self._window = StepWindow(len(source_names))
        self._logged_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether a step event is due, by rank 0's clock."""
        return self.log.enabled and time.monotonic() - self._logged_at >= self.interval

    def add(self, step: StepResult) -> None:
        """Add a step that was applied."""
        self._window.add(step)

    def add_time(self, wait_seconds: float, step_seconds: float) -> None:
        """Add a step's duration, and the part of it in which it waited for data."""
        self.train_seconds += step_seconds
        self._window.seconds += step_seconds
        self._window.wait_seconds += wait_seconds

    def log_verdict(self, step: StepResult, progress: Progress, guard: StabilityGuard) -> None:
        """Log a spike or a skipped step under the number that the step has or would have had."""
        figures = {"step": progress.step + 1, "loss": step.loss, "grad_norm": step.grad_norm}
        if step.skipped:
            in_a_row, total = guard.skipped_in_a_row + 1, progress.skipped + 1
            self.log.write("skip", **figures, reason=step.verdict, in_a_row=in_a_row, total=total)
        elif step.verdict is Verdict.SPIKE:
            self.log.write("spike", **figures, threshold=guard.threshold())

    def log_steps(self, progress: Progress, learning_rate: float, slow_rank: Mapping[str, Any] = NOTHING) -> None:
        """Log the window's figures and start a new one; nothing without steps. `slow_rank` is, of several ranks, the
        event's key with its value."""
        window, figures = self._window, self.figures
        if not window.steps:
            return
        labels = window.loss_sums[1].tolist()
        loss, by_source = mean_losses(window.loss_sums)
        rate = window.tokens / max(window.seconds, 1e-9)
        core: dict[str, Any] = {}
        if figures.has_core:
            core = {"core_grad_norm": window.core_grad_norm, "core_left_out": window.core_left_out}
        self.log.write(
            "step",
            step=progress.step,
            tokens=progress.tokens_in_run,
            tokens_total=progress.tokens_total,
            share=min(1.0, progress.tokens_in_run / figures.token_budget),
            loss=loss,
            lr=learning_rate,
            grad_norm=window.grad_norm,
            tokens_per_second=rate,
            mfu=None if figures.peak_flops is None else rate * figures.flops_per_token / figures.peak_flops,
            data_wait=window.wait_seconds / max(window.seconds, 1e-9),
            eta_seconds=max(0, figures.token_budget - progress.tokens_in_run) / max(rate, 1e-9),
            memory_bytes=memory_in_use(self.device) if self.log.enabled else None,
            sources={n: value for n, value in zip(self.source_names, by_source, strict=True) if value is not None},
            source_shares={n: one / sum(labels) for n, one in zip(self.source_names, labels, strict=True) if one},
            auxiliary=mean_figures(window.auxiliary) | self._loads(window),
            steps=window.steps,
            **core,
            **slow_rank,
        )
        self._window = StepWindow(len(self.source_names))
        self._logged_at = time.monotonic()

    def _loads(self, window: StepWindow) -> dict[str, float]:
        """By name, the mean over the steps of each block's MaxVio."""
        if not isinstance(window.max_violation, torch.Tensor):
            return {}
        means = (window.max_violation / window.steps).tolist()
        names = (f"block_{block}_max_violation" for block in self.figures.expert_blocks)
        return dict(zip(names, means, strict=True))


def mean_figures(auxiliary: torch.Tensor) -> dict[str, float]:
    """The means of StepResult's `auxiliary` by name; figures without counts are left out."""
    return {name: total / number for name, (total, number) in zip(FIGURES, auxiliary.tolist(), strict=True) if number}
