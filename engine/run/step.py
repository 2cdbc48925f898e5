"""What one optimizer step does, whether it is made at all, and what is counted on the way."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import deepspeed
import torch

from engine.device import deepspeed_engine
from engine.device.ranks import Ranks
from engine.device.synchronization import forbidden
from engine.run.curriculum import Curriculum
from engine.run.stability import Guard, Verdict
from model.latent import FIGURES, LookAhead
from sources.loading.loader import Batch

UNIT = 2.0**-20  # nats
LIMIT = 2.0**28  # nats of a row; beyond it a loss is as good as infinite, and whole numbers would not hold the sum


@dataclass(frozen=True)
class StepResult:
    """One step, the same on all ranks."""

    loss: float  # nats per label
    loss_sums: torch.Tensor  # (2, sources) int64: NLL in units of UNIT nats, and labels; zeros where it was skipped
    auxiliary: torch.Tensor  # (FIGURES, 2) fp64: sums of the latent core's figures, and what they are over; likewise
    grad_norm: float | None  # the trunk's before clipping, NaN where not finite; None where the loss alone decided
    core_grad_norm: float | None  # the latent core's, NaN where it was left out; 0 without a core; None likewise
    verdict: Verdict
    skipped: bool  # neither weights nor moments have changed


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    batch: Batch,
    labels_in_step: int,
    num_sources: int,
    clip: float,
    guard: Guard,
    ranks: Ranks,
    each_pass: Callable[[Iterable], Iterable] = iter,
    *,
    forbid_synchronization: bool = False,
    document_mask: bool = False,
    curriculum: Curriculum | None = None,
    look_ahead: Sequence[LookAhead] | None = None,
) -> StepResult:
    """Forward and backward over this rank's share and, unless `guard` refuses the loss or the gradient is not finite on
    some rank, the optimizer's step. With a `curriculum` rows count by how hard they are; `look_ahead` is what each
    pass draws for the latent core, whose objectives join the gradient but not the loss that is judged. `each_pass`
    hands on the passes and may raise to give up the step, which then has changed nothing that a snapshot holds. Where
    it is forbidden, a pass that waits for the device raises Synchronization.

    The gradient is that of the mean over all `labels_in_step` labels, whichever rank and pass they are in: DeepSpeed
    divides by the passes and averages over ranks, so each sum is scaled by both over the number of labels.
    """
    scale = len(batch.input_ids) * ranks.world_size / labels_in_step
    losses = SourceLosses(num_sources, ranks.device)
    figures = torch.zeros(len(FIGURES), 2, dtype=torch.float64, device=ranks.device)
    passes = (batch.input_ids, batch.labels, batch.segment_ids, batch.source_ids)
    for number, tensors in enumerate(each_pass(zip(*passes, strict=True))):
        with forbidden(ranks.device) if forbid_synchronization else nullcontext():
            input_ids, labels, segment_ids, source_ids = (
                tensor.to(ranks.device, non_blocking=True) for tensor in tensors
            )
            options = {}
            if curriculum is not None:
                options |= {"difficulty": curriculum.thresholds, "curriculum_temperature": curriculum.temperature}
            if look_ahead is not None:
                options["look_ahead"] = look_ahead[number].to(ranks.device)
            loss_sum, token_nll, *told = engine(input_ids, labels, segment_ids if document_mask else None, **options)
            engine.backward(loss_sum * scale)
            for of_pass in told:
                figures += of_pass
            if curriculum is not None:
                curriculum.add(token_nll, labels)
            losses.add(token_nll, labels, source_ids)
            if not engine.is_gradient_accumulation_boundary():
                engine.step()  # counts the pass

    gradients = deepspeed_engine.Gradients.accumulated(engine)
    sums, squares, figures = on_cpu(losses.sums, gradients.squared_norms(ranks.device), figures)
    loss, loss_sums = over_all(sums, ranks)
    verdict, grad_norm, core_grad_norm = guard.judge(loss), None, None
    if guard.refuses(verdict):
        deepspeed_engine.discard(engine)
    else:
        grad_norm, core_grad_norm = deepspeed_engine.step(engine, gradients, squares, clip, ranks)
        verdict = verdict if math.isfinite(grad_norm) else Verdict.GRADIENT
    skipped = guard.refuses(verdict)
    auxiliary = figures if look_ahead is None or skipped else ranks.sum_tensor(figures)
    if skipped:
        loss_sums, auxiliary = torch.zeros_like(loss_sums), torch.zeros_like(auxiliary)
    return StepResult(loss, loss_sums, auxiliary, grad_norm, core_grad_norm, verdict, skipped)


def on_cpu(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copies of tensors whose elements have 8 bytes, by one transfer: each by itself would wait for the device."""
    bits = torch.cat([tensor.flatten().view(torch.int64) for tensor in tensors]).cpu()
    parts = bits.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class SourceLosses:
    """One step's sums by source, kept on the device until the step is judged.

    Whole numbers: their sum is the same in any order, over any ranks, and across a restart.
    """

    def __init__(self, num_sources: int, device: torch.device):
        self.sums = torch.zeros(3, num_sources, dtype=torch.int64, device=device)  # NLL, labels, rows not finite

    def add(self, token_nll: torch.Tensor, labels: torch.Tensor, source_ids: torch.Tensor) -> None:
        """Counts one pass: token_nll and labels (B, T), source_ids (B,), on the device."""
        nll = token_nll.sum(1, dtype=torch.float64)
        finite = nll.abs() < LIMIT  # NaN is not
        units = torch.where(finite, nll / UNIT, 0.0).round().long()
        self.sums.index_add_(1, source_ids, torch.stack([units, (labels != -100).sum(1), (~finite).long()]))


def over_all(sums: torch.Tensor, ranks: Ranks) -> tuple[float, torch.Tensor]:
    """From this rank's SourceLosses.sums, on the CPU: the mean loss in nats over all ranks' labels, NaN where any row's
    is not finite; the sums of StepResult."""
    sums = ranks.sum_tensor(sums)
    nll, labels, not_finite = sums.sum(1).tolist()
    return math.nan if not_finite or not labels else nll * UNIT / labels, sums[:2]


def mean_losses(loss_sums: torch.Tensor) -> tuple[float, list[float | None]]:
    """The mean NLL in nats over all labels of StepResult's `loss_sums`, and by source (None: no labels)."""
    nll, labels = loss_sums.double()
    by_source = [(nll[i] * UNIT / labels[i]).item() if labels[i] else None for i in range(len(labels))]
    return (nll.sum() * UNIT / labels.sum()).item(), by_source


def mean_figures(auxiliary: torch.Tensor) -> dict[str, float]:
    """The means of StepResult's `auxiliary` by name; a figure that is over nothing has none."""
    return {name: total / number for name, (total, number) in zip(FIGURES, auxiliary.tolist(), strict=True) if number}


class Tally:
    """What is counted since the last report, over all ranks; a skipped step only takes time."""

    def __init__(self, num_sources: int):
        self.loss_sums = torch.zeros(2, num_sources, dtype=torch.int64)
        self.auxiliary = torch.zeros(len(FIGURES), 2, dtype=torch.float64)
        self.reset()

    def reset(self) -> None:
        self.loss_sums.zero_()
        self.auxiliary.zero_()
        self.steps = self.tokens = self.core_left_out = 0
        self.grad_norm: float | None = None  # of the latest step, and so is the core's
        self.core_grad_norm: float | None = None
        self.seconds = self.wait_seconds = 0.0

    def add(self, step: StepResult) -> None:
        self.loss_sums += step.loss_sums
        self.auxiliary += step.auxiliary
        self.steps += 1
        self.tokens += int(step.loss_sums[1].sum())
        self.grad_norm, self.core_grad_norm = step.grad_norm, step.core_grad_norm
        self.core_left_out += math.isnan(step.core_grad_norm)

    def waited(self, wait: float, whole: float) -> None:
        self.wait_seconds += wait
        self.seconds += whole
