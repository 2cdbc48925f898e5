"""What a run tells of itself, as events and lines: how it begins, how it goes, which steps were bad.

Only rank 0 is heard; the others call everything alike and tell nobody.
"""

import time
from typing import Any

from engine.config import Preset
from engine.device import machine
from engine.device.ranks import Ranks
from engine.events import Metrics
from engine.run.resume import Progress
from engine.run.stability import Guard, Verdict
from engine.run.step import StepResult, Tally, mean_figures, mean_losses
from engine.screen import report
from engine.screen.console import Console, count
from storage import reason


class Reporting:
    """`source_names` are those of the losses' columns; `token_budget` is the run's."""

    def __init__(
        self,
        preset: Preset,
        token_budget: int,
        source_names: list[str],
        ranks: Ranks,
        console: Console,
        metrics: Metrics,
    ):
        self.preset, self.token_budget, self.source_names = preset, token_budget, source_names
        self.ranks, self.console, self.metrics = ranks, console, metrics
        self.tally = Tally(len(source_names))
        self._has_core = preset.auxiliary.looks_ahead
        self._flops_per_token, self._peak = 0, None  # the latter of all processes together, FLOP/s
        self._reported_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for a report, by rank 0's clock."""
        seconds = time.monotonic() - self._reported_at
        return self.ranks.is_main and seconds >= self.preset.train.log_interval_seconds

    def begin(self, run: int, derived: dict[str, Any]) -> None:
        """The run's event, and what a reader should know before the first step. `derived` holds what follows from
        the preset and the machine: see Run._derived."""
        preset, train = self.preset, self.preset.train
        where = machine.describe(self.ranks.device)
        world_size, padded = self.ranks.world_size, derived["rows_per_pass"]
        peak = machine.peak_flops(self.ranks.device, derived["precision"] == "bf16")
        self._flops_per_token, self._peak = derived["flops_per_token"], peak and peak * world_size
        derived = {**derived, "world_size": world_size, "token_budget": self.token_budget, "run": run}
        derived["peak_flops"] = self._peak
        self.metrics.write("run", preset=preset.model_dump(mode="json", by_alias=True), derived=derived, machine=where)
        rows = train.per_gpu_batch_size * train.accumulation_steps * world_size
        instructions = machine.bf16_instructions(self.ranks.device) if derived["precision"] == "bf16" else None
        alone = f" ({train.zero_stage} with more processes)" if derived["zero_stage"] != train.zero_stage else ""
        arithmetic = derived["precision"] + (f" by {instructions}" if instructions else "")
        self.console.say(
            f"Run {run} of {preset.name}: {count(derived['parameters'])} parameters, vocabulary "
            f"{derived['vocab_size']:,}, {rows} rows of {preset.model.seq_length} tokens a step, "
            f"{arithmetic}, ZeRO-{derived['zero_stage']}{alone}, {world_size} process"
            f"{'es' if world_size > 1 else ''} on {where}."
        )
        rests = f"{count(self._flops_per_token)}FLOP a token (6 a weight of each product, and attention)"
        if self._peak is None:
            self.console.say(f"{rests}; MFU unknown: no table has this device's peak.")
        else:
            self.console.say(f"{rests}; MFU is of {count(self._peak)}FLOP/s, the data sheet's peak.")
        if train.train_tokens is not None and train.train_tokens != self.token_budget:
            self.console.say(
                f"train.train_tokens {train.train_tokens:,} is overridden: a run is {self.token_budget:,} tokens."
            )
        if (padding := padded / train.per_gpu_batch_size - 1) > 0:
            self.console.say(
                f"{world_size} processes cannot share this lineage's {derived['lanes']} lanes of data "
                f"evenly: a pass has {padded} rows instead of {train.per_gpu_batch_size}, the additional ones for "
                f"padding ({padding:.0%} more to compute)."
            )
        if world_size == 1 and (idle := machine.idle_gpus()):
            self.console.say(f"{idle} more GPUs are idle; start with deepspeed main.py to use them all.")
        if not derived["held_out_tokens"]:
            self.console.say("Nothing is held out: the sources are too small, so there is no evaluation.")
        elif derived["held_out_tokens"] < 0.9 * train.eval_tokens:
            self.console.say(
                f"Held out for evaluation: {derived['held_out_tokens']:,} of the {train.eval_tokens:,} tokens asked, "
                "in whole documents."
            )

    def verdict(self, step: StepResult, progress: Progress, guard: Guard) -> None:
        """A spike or a skipped step, by the number of the step that it is or would have been."""
        said = {"step": progress.step + 1, "loss": step.loss, "grad_norm": step.grad_norm}
        if step.skipped:
            in_a_row, total = guard.skipped_in_a_row + 1, progress.skipped + 1
            self.metrics.write("skip", **said, reason=step.verdict, in_a_row=in_a_row, total=total)
        elif step.verdict is Verdict.SPIKE:
            self.metrics.write("spike", **said, threshold=guard.threshold())

    def report(self, progress: Progress, learning_rate: float) -> None:
        """The figures since the last report, if there were steps: one event, one line."""
        tally = self.tally
        if not tally.steps:
            return
        loss, by_source = mean_losses(tally.loss_sums)
        rate = tally.tokens / max(tally.seconds, 1e-9)
        core = {"core_grad_norm": tally.core_grad_norm, "core_left_out": tally.core_left_out} if self._has_core else {}
        self.metrics.write(
            "step",
            step=progress.step,
            tokens=progress.tokens_in_run,
            tokens_total=progress.tokens_total,
            share=min(1.0, progress.tokens_in_run / self.token_budget),
            loss=loss,
            lr=learning_rate,
            grad_norm=tally.grad_norm,
            tokens_per_second=rate,
            mfu=None if self._peak is None else rate * self._flops_per_token / self._peak,
            data_wait=tally.wait_seconds / max(tally.seconds, 1e-9),
            eta_seconds=max(0, self.token_budget - progress.tokens_in_run) / max(rate, 1e-9),
            sources={n: value for n, value in zip(self.source_names, by_source, strict=True) if value is not None},
            auxiliary=mean_figures(tally.auxiliary),
            steps=tally.steps,
            **core,
        )
        tally.reset()
        self._reported_at = time.monotonic()

    def draw_page(self) -> None:
        """The run's page as it stands now."""
        if not self.ranks.is_main:
            return
        try:
            report.write(self.metrics.path.parent)
        except Exception as error:  # a full disk; or a line of the journal that has lost a bit
            why = reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self.console.warn(f"{report.FILE_NAME} could not be written ({why}); training goes on without it.")
