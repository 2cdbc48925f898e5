"""The training loop: from where a run begins to its last token.

A step reads as a paragraph: take a batch, agree with the other ranks, set the learning rate, forward and backward,
count; now and then report, evaluate, save. The batch's data state becomes the run's state only after the step.
"""

import gc
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from engine.checkpoint.background import Copy, Saving
from engine.checkpoint.folder import CheckpointFolder
from engine.config import Preset
from engine.control.signals import Abandoned, Watch
from engine.device import deepspeed_engine, machine
from engine.device.compiling import choose_compile, compile_model
from engine.device.determinism import seed_batch
from engine.device.memory import never_look_through_again, require_memory
from engine.device.ranks import Agreement, Ranks
from engine.errors import Diverged, Interrupted, PresetError, SourcesFailed
from engine.events import Metrics
from engine.optim.schedule import learning_rate
from engine.run import samples
from engine.run.ahead import Ahead
from engine.run.batches import Feed, places_per_pass
from engine.run.curriculum import Curriculum
from engine.run.evaluation import evaluate, held_out_rows
from engine.run.resume import Beginning
from engine.run.stability import Guard, all_finite
from engine.run.step import StepResult, train_step
from engine.run.telemetry import Reporting
from engine.run.warmup import choose_rows, rehearse, with_rows
from engine.screen.console import Console, count
from model.latent import LookAhead
from model.snapshot.file import Snapshot
from sources.loading.loader import Batch
from sources.registry import AllSourcesFailed

LONG_STEP_SECONDS = 2.0  # from here on several ranks ask each other between the passes of a step, too


@dataclass(frozen=True)
class TrainResult:
    """What a finished run has to show. `eval_*` are None where the sources held nothing out."""

    tokens: int  # of this run
    tokens_per_second: float  # of all ranks since this start; evaluations and saves left out
    eval_loss: float | None  # nats per held-out token
    eval_perplexity: float | None
    bits_per_byte: float | None
    snapshot: Path


class Run:
    """One run's moving parts. Every method is called by all ranks."""

    def __init__(
        self,
        preset: Preset,
        token_budget: int,
        beginning: Beginning,
        folder: CheckpointFolder,
        ranks: Ranks,
        console: Console,
        metrics: Metrics,
        stop: Watch,
    ):
        self.preset, self.token_budget, self.beginning = preset, token_budget, beginning
        self.folder, self.ranks, self.console, self.metrics, self.stop = folder, ranks, console, metrics, stop
        self.progress, self.tokenizer, self.model = beginning.progress, beginning.tokenizer, beginning.model
        self.model_config, self.is_new = beginning.model_config, beginning.is_new
        if preset.train.forbid_synchronization and preset.train.zero_stage == 3 and ranks.device.type == "cuda":
            raise PresetError(
                "train.forbid_synchronization: DeepSpeed's stage 3 itself waits for a GPU; set train.zero_stage to 2."
            )
        self.bf16 = machine.choose_bf16(preset.train.precision, ranks, console)
        saved = beginning.data_state or {}
        if preset.train.probe_batch:
            rows = choose_rows(preset, self.model, self.bf16, saved.get("rows_of_pass"), ranks, console)
            self.preset = preset = with_rows(preset, rows)
        self.places = places_per_pass(preset, beginning, ranks)  # rows of every pass, some of them perhaps padding
        require_memory(preset, self.places, self.model, ranks)
        # Counted before the engine takes the weights: stage 3 leaves each rank with empty ones.
        flops = self.model.flops_per_token(preset.model.seq_length)
        self.size = {"parameters": self.model.num_parameters(), "flops_per_token": flops}
        if beginning.message:
            metrics.write("resume", step=self.progress.step, message=beginning.message)
        self.engine = deepspeed_engine.initialize(self.model, preset.train, ranks, self.bf16)
        self.compiling = choose_compile(preset.train.compile, preset.train.zero_stage, ranks, console)
        self.rehearsals = compile_model(self.engine) if self.compiling else 1
        self.held_out = held_out_rows(beginning.opened, preset, self.tokenizer, ranks, folder.folder, beginning.cache)
        self.curriculum = Curriculum(preset.auxiliary, ranks) if preset.auxiliary.enable_curriculum else None
        if self.curriculum and saved.get("curriculum"):
            self.curriculum.load(saved["curriculum"])
        lineage = (preset.train.seed, token_budget, self.progress.tokens_total, saved.get("parts_begin"))
        self.ahead = Ahead(preset.auxiliary, self.model.latent, preset.model.seq_length, *lineage)
        self.feed = Feed(preset, beginning, ranks, metrics)
        interval = preset.train.save_interval_minutes
        self.saving = Saving(self._copy, interval, folder, ranks, console, metrics, beginning.saved)
        self.guard = Guard(preset.train.on_spike, preset.train.max_skipped_steps)
        if saved.get("guard"):
            self.guard.load(saved["guard"])
        self.reporting = Reporting(preset, token_budget, self.feed.source_names, ranks, console, metrics)

    def train(self) -> TrainResult:
        """Steps until the budget is met; evaluates and saves on the way and at the end."""
        self.reporting.begin(self.progress.run, self._derived())
        begin_tokens, self.train_seconds, self.step_seconds = self.progress.tokens_in_run, 0.0, 0.0
        if self.is_new:
            self.saving.save()  # a disk that cannot take it shows now, and the tokenizer is kept
        self._rehearse()
        if self.compiling:
            self.compiling.done()
        never_look_through_again()  # what stands now: a compiler leaves hundreds of thousands of objects
        interval = self.preset.train.eval_interval_tokens
        next_evaluation = (begin_tokens // interval + 1) * interval
        while self.progress.tokens_in_run < self.token_budget:
            before = time.monotonic()
            batch, agreed = self._next()
            waited = time.monotonic() - before

            deepspeed_engine.set_learning_rate(self.engine, self._learning_rate())
            if self.preset.model.dropout:
                seed_batch(self.preset.train.seed, batch.number, self.ranks.rank)
            each_pass = self._each_pass if agreed.long_step or self.ranks.world_size == 1 else iter
            try:
                step = self._step(batch, agreed.labels, self._look_ahead(batch), self.guard, each_pass)
            except Abandoned:
                continue  # the next agreement leaves, with the step before
            self.reporting.verdict(step, self.progress, self.guard)
            self._advance(batch, step)
            self.stop.training(lambda: f"at step {self.progress.step:,}")
            self.step_seconds = time.monotonic() - before
            self.train_seconds += self.step_seconds
            self.reporting.tally.waited(waited, self.step_seconds)

            if agreed.report:
                self.reporting.report(self.progress, deepspeed_engine.learning_rate(self.engine))
                gc.collect()  # on all ranks at once
            self.saving.look()
            if next_evaluation <= self.progress.tokens_in_run < self.token_budget:
                self._evaluate()
                next_evaluation += interval
            # Not a generation that may be of no use, nor one that looks finished and has no final evaluation.
            if agreed.save and not self.guard.skipped_in_a_row and self.progress.tokens_in_run < self.token_budget:
                self.saving.save()
        self.reporting.report(self.progress, deepspeed_engine.learning_rate(self.engine))
        self.feed.tell_counts()
        if not self._evaluate():
            self._leave(self.ranks.agree(self._signals()))  # the next start makes up for it
        self.progress.finished = True
        self._save_at_last()  # whatever signal comes now, the run is done
        self.reporting.draw_page()
        trained = self.progress.tokens_in_run - begin_tokens
        figures = self.progress.evaluation or {}
        return TrainResult(
            tokens=self.progress.tokens_in_run,
            tokens_per_second=trained / max(self.train_seconds, 1e-9),
            eval_loss=figures.get("ce"),
            eval_perplexity=figures.get("perplexity"),
            bits_per_byte=figures.get("bits_per_byte"),
            snapshot=self.folder.current,
        )

    def close(self) -> None:
        self.saving.close()
        self.feed.close()
        self.engine.destroy()
        if self.compiling:
            self.compiling.close()

    # One step

    def _step(
        self,
        batch: Batch,
        labels: int,
        look_ahead: list[LookAhead] | None,
        guard: Guard,
        each_pass: Callable[[Iterable], Iterable] = iter,
    ) -> StepResult:
        """A step on `batch`, with so many labels on all ranks."""
        train = self.preset.train
        return train_step(
            self.engine,
            batch,
            labels,
            len(self.feed.source_names),
            train.gradient_clipping,
            guard,
            self.ranks,
            each_pass,
            forbid_synchronization=train.forbid_synchronization and self.rehearsed,
            document_mask=self.preset.data.document_mask,
            curriculum=self.curriculum,
            look_ahead=look_ahead,
        )

    def _next(self) -> tuple[Batch, Agreement]:
        """The next batch and what the ranks agreed on; a signal, or the end of all sources, ends the run here."""
        try:
            batch, agreed = self.feed.next(self._wishes)
        except AllSourcesFailed as failed:
            self._halt(str(failed))
        if agreed.signalled:
            self._leave(agreed)
        return batch, agreed

    def _wishes(self) -> Agreement:
        """What this rank has to say before a step."""
        return replace(
            self._signals(),
            report=int(self.reporting.due),
            save=int(self.saving.due),
            long_step=int(self.ranks.is_main and self.step_seconds > LONG_STEP_SECONDS),
        )

    def _stopping(self) -> bool:
        """Whether any rank has received a signal."""
        return self.ranks.agree(self._signals()).signalled

    def _signals(self) -> Agreement:
        number = self.stop.signal_number
        return Agreement(
            interrupt=int(number == signal.SIGINT),
            terminate=int(number == signal.SIGTERM),
            hang_up=int(number == signal.SIGHUP),
        )

    def _each_pass(self, passes: Iterable) -> Iterable:
        """`passes`, given up when any rank has received a signal. Stage 3 leaves no whole weights in mid-pass."""
        return self.stop.abandonable(passes, self._stopping, interruptible=self.preset.train.zero_stage < 3)

    def _learning_rate(self) -> float:
        train = self.preset.train
        return learning_rate(
            self.progress.tokens_in_run,
            self.token_budget,
            peak=train.learning_rate,
            warmup_fraction=train.warmup_fraction,
            final_fraction=train.final_learning_rate_fraction,
            continued=self.progress.run > 1,
        )

    def _look_ahead(self, batch: Batch) -> list[LookAhead] | None:
        """What each pass of `batch` draws for the latent core; None without one."""
        return self.ahead.draw(batch, self.progress.tokens_total, self.ranks.rank)

    def _advance(self, batch: Batch, step: StepResult) -> None:
        """The batch is behind the run. Of a skipped step nothing else counts, and too many in a row end the attempt."""
        self.feed.advance(batch, step.loss_sums)
        self.guard.after_step(step.loss, step.skipped)
        if step.skipped:
            self.progress.skipped += 1
            if self.curriculum:
                self.curriculum.forget_step()
            if self.guard.exhausted:
                self._diverge(
                    f"{self.guard.skipped_in_a_row} steps in a row were skipped, the last for a {step.verdict}"
                )
            return
        labels = int(step.loss_sums[1].sum())
        self.progress.step += 1
        self.progress.tokens_in_run += labels
        self.progress.tokens_total += labels
        self.reporting.tally.add(step)
        if self.curriculum:
            self.curriculum.after_step(labels)

    # Now and then

    def _evaluate(self) -> bool:
        """False where it was given up because of a signal."""
        if not len(self.held_out.input_ids):
            return True  # the sources are too small to hold anything out, which was said at the start
        try:
            figures = self._losses_held_out(self._each_pass)
        except Abandoned:
            return False  # the next step's agreement leaves
        if not math.isfinite(figures["ce"]):
            self._diverge("The held-out loss is not finite")
        self.progress.evaluation = {key: figures[key] for key in ("ce", "perplexity", "bits_per_byte")}
        shape, step = (self.model_config, self.preset.auxiliary), self.progress.step
        shown = samples.show(self.engine, *shape, self.held_out, self.tokenizer, step, self.ranks)
        self.metrics.write("evaluation", step=step, tokens_total=self.progress.tokens_total, **figures, **shown)
        self.reporting.draw_page()
        return True

    def _derived(self) -> dict[str, Any]:
        """What follows from the preset and the machine, for the run's event."""
        preset, train = self.preset, self.preset.train
        rows = train.per_gpu_batch_size * train.accumulation_steps * self.ranks.world_size
        return {
            **self.size,
            "vocab_size": self.tokenizer.vocab_size,
            "zero_stage": self.engine.zero_optimization_stage(),
            "global_batch_tokens": rows * preset.model.seq_length,
            "held_out_tokens": int((self.held_out.labels != -100).sum()),
            "precision": "bf16" if self.bf16 else "fp32",
            "compiled": self.compiling is not None,
            "lanes": self.feed.num_lanes,
            "rows_per_pass": self.places,
            "data_workers": self.feed.num_workers,
        }

    def _rehearse(self) -> None:
        """A step that changes nothing and a pass of an evaluation, before there is anything to lose; then the optimizer
        has its state."""
        self.rehearsed = False
        rehearsal = (self.engine, self._step, self.preset, self.places, self._look_ahead, self.ranks)
        for _ in range(self.rehearsals):
            rehearse(*rehearsal)
        if self.curriculum:
            with self.curriculum.as_after_burn_in():  # another graph, and more memory
                for _ in range(self.rehearsals):
                    rehearse(*rehearsal)
            self.curriculum.forget_step()
        if len(self.held_out.input_ids):
            self._losses_held_out(lambda passes: itertools.islice(passes, self.rehearsals))
        self.rehearsed = True
        if missing := deepspeed_engine.load_optimizer_state(self.engine, self.beginning.optimizer, self.ranks):
            self.console.say(f"The optimizer's state fits all but {len(missing)} parameters, whose moments begin anew.")
        self.beginning.optimizer = None  # twice the model's size, and the engine has it now

    def _losses_held_out(self, each_pass: Callable[[Iterable], Iterable]) -> dict[str, Any]:
        # In passes of the shape that training has: another would be compiled by itself.
        names, document_mask = self.feed.source_names, self.preset.data.document_mask
        return evaluate(self.engine, self.held_out, names, self.ranks, self.places, each_pass, document_mask)

    def _copy(self) -> Copy:
        """This moment, as it is saved; all ranks must call it."""
        weights = deepspeed_engine.weights(self.engine, keep=self.ranks.is_main)
        optimizer = deepspeed_engine.optimizer_state(self.engine, keep=self.ranks.is_main)
        moments = [tensor for tensors in optimizer.get("moments", {}).values() for tensor in tensors.values()]
        if not self.ranks.on_main(lambda: all_finite([*weights.values(), *moments])):
            self._diverge("The weights are not finite")
        tokenizer = {"vocab_size": self.tokenizer.vocab_size, "eos_token_id": self.tokenizer.eos_id}
        snapshot = Snapshot(
            model=weights,
            config=self.model_config.model_dump() | tokenizer,
            tokenizer=self.tokenizer.to_json(),
            preset=self.preset.model_dump(mode="json", by_alias=True),
            progress=asdict(self.progress),
        )
        return snapshot, optimizer, self._data_state()

    def _save_at_last(self) -> None:
        self.saving.save_at_last(asdict(self.progress), self._stopping)

    def _data_state(self) -> dict[str, Any]:
        """All that resumes right after the last step, but for the weights and their moments."""
        curriculum = self.curriculum.state() if self.curriculum else None
        return {
            **self.feed.state(),
            "rows_of_pass": self.preset.train.per_gpu_batch_size,
            "parts_begin": self.ahead.state(),
            "curriculum": curriculum,
            "guard": self.guard.state(),
        }

    def _diverge(self, what: str) -> NoReturn:
        """Ends this attempt without saving; train() stops or rolls back."""
        advice = f"lower train.learning_rate in preset {self.preset.name}"
        if self.preset.train.on_divergence == "stop":
            advice += ', or set train.on_divergence to "rollback"'
        raise Diverged(
            what,
            f"The snapshots are as they were; {advice}.",
            step=self.progress.step,
            skipped=self.progress.skipped,
            data_state={**self._data_state(), "guard": None},  # other weights will have other losses
            saved=self.ranks.on_main(self.saving.settled),
        )

    def _leave(self, agreed: Agreement) -> None:
        """Saves and leaves because of a signal."""
        number = signal.SIGINT if agreed.interrupt else signal.SIGTERM if agreed.terminate else signal.SIGHUP
        self._save_at_last()
        self.feed.tell_counts()
        raise Interrupted(
            number,
            f"{number.name} at step {self.progress.step:,}; saved to {self.folder.current}, "
            "the next start goes on from there.",
        )

    def _halt(self, why: str) -> None:
        """Saves and stops because no real text is left."""
        self._save_at_last()
        raise SourcesFailed(
            f"{why} Saved to {self.folder.current} at {count(self.progress.tokens_in_run)} tokens of this run; "
            "the next start goes on from there."
        )
