"""One optimizer step: forward and backward over its micro-batches, whether the update is applied, and its figures."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from engine.control.slow_rank import ForwardTimer
from engine.data.curriculum import Curriculum
from engine.data.source_losses import SourceLosses, sum_over_ranks
from engine.device import deepspeed_engine
from engine.device.deepspeed_engine import Engine
from engine.device.ranks import Ranks
from engine.device.synchronization import forbidden
from engine.optim.expert_balance import ExpertBalance
from engine.run.stability import StabilityGuard, Verdict
from model.latent import FIGURES as OF_CORE
from model.latent import LookAhead
from model.memory import FIGURES as OF_MEMORY
from sources.loading.loader import Batch

FIGURES = (*OF_CORE, *OF_MEMORY)  # the rows of a step's `auxiliary`


@dataclass(frozen=True)
class StepResult:
    """One step, the same on all ranks."""

    loss: float  # nats per label
    loss_sums: torch.Tensor  # (2, sources) int64: NLL in source_losses.UNIT nats, and labels; zeros if skipped
    auxiliary: torch.Tensor  # (FIGURES, 2) fp64: sums of the core's and memory's figures, counts; zeros if skipped
    grad_norm: float | None  # the trunk's before clipping, NaN if not finite; None if the loss alone was refused
    core_grad_norm: float | None  # the lookahead core's, NaN if it was left out; 0 without a core; None as above
    verdict: Verdict
    skipped: bool  # neither weights nor moments changed
    max_violation: torch.Tensor | None = None  # (blocks with experts,) fp64: MaxVio; None if skipped or without experts

    @property
    def labels(self) -> int:
        return int(self.loss_sums[1].sum())


@dataclass(frozen=True)
class StepRunner:
    """Runs steps on an engine. `forbid_synchronization`: a micro-batch that waits for the device raises an error."""

    engine: Engine
    ranks: Ranks
    num_sources: int
    gradient_clipping: float
    document_mask: bool = False
    curriculum: Curriculum | None = None
    forbid_synchronization: bool = False
    timer: ForwardTimer | None = None  # of several ranks
    balance: ExpertBalance | None = None  # None without experts

    def run(
        self,
        batch: Batch,
        labels_in_step: int,
        guard: StabilityGuard,
        look_ahead: Sequence[LookAhead] | None = None,
        wrap: Callable[[Iterable], Iterable] = iter,
    ) -> StepResult:
        """Train on this rank's share of a step with `labels_in_step` labels over all ranks.

        The update is applied unless `guard` refuses the loss or the gradient is not finite on some rank. `look_ahead`
        holds each micro-batch's draws for the lookahead core, whose objectives join the gradient but not the judged
        loss. `wrap` iterates over the micro-batches and may raise to abandon the step, which then has changed nothing
        that a checkpoint holds.

        The gradient is that of the mean over all labels of the step, on whichever rank and micro-batch they are:
        DeepSpeed divides by micro-batches and averages over ranks, so each sum is scaled by both over the labels.
        """
        engine, device = self.engine, self.ranks.device
        has_memory = engine.module.memory is not None
        own = slice(len(OF_CORE), None) if has_memory else slice(len(OF_CORE))
        scale = len(batch.input_ids) * self.ranks.world_size / labels_in_step
        losses = SourceLosses(self.num_sources, device)
        figures = torch.zeros(len(FIGURES), 2, dtype=torch.float64, device=device)
        loads: list[torch.Tensor] = []
        micro_batches = zip(batch.input_ids, batch.labels, batch.segment_ids, batch.source_ids, strict=True)
        for number, tensors in enumerate(wrap(micro_batches)):
            with forbidden(device) if self.forbid_synchronization else nullcontext():
                input_ids, labels, segment_ids, source_ids = (t.to(device, non_blocking=True) for t in tensors)
                options: dict[str, Any] = {}
                if self.curriculum is not None:
                    options["difficulty"] = self.curriculum.thresholds
                    options["curriculum_temperature"] = self.curriculum.temperature
                if look_ahead is not None:
                    options["look_ahead"] = look_ahead[number].to(device)
                if has_memory:
                    options["documents"] = segment_ids
                segment_ids = segment_ids if self.document_mask else None
                with self.timer if self.timer and not number else nullcontext():
                    loss_sum, token_nll, *core_figures = engine(input_ids, labels, segment_ids, **options)
                if self.balance is not None:
                    loads.append(core_figures.pop().clone())  # a CUDA graph's output is overwritten
                engine.backward(loss_sum * scale)
                for of_micro_batch in core_figures:
                    figures[own] += of_micro_batch
                if self.curriculum is not None:
                    self.curriculum.add(token_nll, labels)
                losses.add(token_nll, labels, source_ids)
                if not engine.is_gradient_accumulation_boundary():
                    engine.step()  # counts the micro-batch
        load = torch.stack(loads).sum(dim=0) if loads else torch.zeros(0, dtype=torch.int64, device=device)
        return self._update(losses.sums, figures, load, guard)

    def _update(
        self, sums: torch.Tensor, figures: torch.Tensor, load: torch.Tensor, guard: StabilityGuard
    ) -> StepResult:
        """Judge the step over all ranks, then apply or drop the accumulated gradients."""
        gradients = deepspeed_engine.Gradients.accumulated(self.engine)
        sums, squares, figures, load = _to_cpu(sums, gradients.squared_norms(self.ranks.device), figures, load)
        loss, loss_sums = sum_over_ranks(sums, self.ranks)
        verdict, grad_norm, core_grad_norm = guard.judge(loss), None, None
        if guard.refuses(verdict):
            deepspeed_engine.discard(self.engine)
        else:
            grad_norm, core_grad_norm = deepspeed_engine.step(
                self.engine, gradients, squares, self.gradient_clipping, self.ranks
            )
            verdict = verdict if math.isfinite(grad_norm) else Verdict.GRADIENT
        skipped, violation = guard.refuses(verdict), None
        if self.balance is not None and not skipped:
            violation = self.balance.after_step(self.ranks.sum_tensor(load))
        if skipped:
            loss_sums, figures = torch.zeros_like(loss_sums), torch.zeros_like(figures)
        elif self.engine.module.latent is not None or self.engine.module.memory is not None:
            figures = self.ranks.sum_tensor(figures)
        return StepResult(loss, loss_sums, figures, grad_norm, core_grad_norm, verdict, skipped, violation)


def _to_cpu(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copy tensors of 8-byte elements to the CPU in one transfer: each alone would wait for the device."""
    bits = torch.cat([tensor.flatten().view(torch.int64) for tensor in tensors]).cpu()
    parts = bits.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
