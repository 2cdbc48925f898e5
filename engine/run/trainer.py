"""The training loop: from where a run starts to its last token.

A step reads as a paragraph: take a batch, agree with the other ranks, set the learning rate, train, count; now and then
log, evaluate, save. The batch's data state becomes the run's state only after the step.
"""

import gc
import math
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import NoReturn, TypeVar

from engine.control.signals import Abandoned, SignalWatch
from engine.control.slow_rank import find_slow_rank
from engine.device import deepspeed_engine
from engine.device.determinism import seed_batch
from engine.device.memory import freeze_gc
from engine.device.optimizer_state import load_optimizer_state
from engine.device.ranks import Agreement
from engine.errors import FolderMoved, Interrupted, RowsChanged, SaveError, SourcesFailed, first_line
from engine.formatting import count
from engine.optim.schedule import batch_multiple, hyperparameters
from engine.optim.weight_average import WeightAverage
from engine.run import samples
from engine.run.components import Components
from engine.run.state import TrainResult
from engine.run.step import StepResult
from engine.run.warmup import warm_up
from sources.loading.loader import Batch
from sources.registry import AllSourcesFailed

T = TypeVar("T")
LONG_STEP_SECONDS = 2.0  # after such a step, several ranks also check for signals between the micro-batches of a step


class Trainer:
    """Trains a run's components. Every method is collective: all ranks must call it."""

    def __init__(self, components: Components, watch: SignalWatch):
        self.c, self.watch = components, watch
        self.progress = components.progress
        # ZeRO stage 3 holds no whole weights within a micro-batch.
        self._abandonable = partial(watch.abandonable, interruptible=components.engine.zero_optimization_stage() < 3)
        self._step_seconds = 0.0
        self._average = WeightAverage(components.train.weight_average_fraction, components.token_budget)
        self._weights_move = False  # between a step's gradients and its being counted no checkpoint would be whole

    def train(self) -> TrainResult:
        """Step until the token budget is met; evaluate and save on the way and at the end.

        Raises Interrupted, FolderMoved, SourcesFailed, RowsChanged or Diverged, all but the last after a save.
        """
        c, progress = self.c, self.progress
        first_tokens = progress.tokens_in_run
        self._start()
        interval = c.train.eval_interval_tokens
        next_evaluation = (first_tokens // interval + 1) * interval
        while progress.tokens_in_run < c.token_budget:
            begin = time.monotonic()
            multiple = batch_multiple(c.train, progress.tokens_in_run, c.token_budget)
            batch, agreed = self._next_batch(multiple)
            waited = time.monotonic() - begin
            try:
                step = self._step(batch, agreed)
            except Abandoned:
                continue  # the next agreement ends the run at the step before
            c.telemetry.log_verdict(step, progress, c.guard)
            self._advance(batch, step)
            self._weights_move = False
            self.watch.training(lambda: f"at step {progress.step:,}")
            self._step_seconds = time.monotonic() - begin
            c.telemetry.add_time(waited, self._step_seconds)

            if agreed.report:
                self._log_steps()
                gc.collect()  # on all ranks at once
            c.saver.poll()
            if next_evaluation <= progress.tokens_in_run < c.token_budget:
                self._evaluate()
                next_evaluation += interval
            # Never between skipped steps, whose checkpoint may be useless, nor when the final one is next.
            if agreed.save and not c.guard.skipped_in_a_row and progress.tokens_in_run < c.token_budget:
                c.saver.save()
        return self._finish(progress.tokens_in_run - first_tokens)

    def rescue(self) -> str:
        """Save what is trained after a fault of the program; return, in a sentence, what became of it."""
        c = self.c
        if self.watch.process.position is None:
            return "There was nothing to save."
        try:
            if c.ranks.world_size > 1:
                raise SaveError("the other ranks cannot be asked")
            if self._weights_move:
                raise SaveError("a step was half made")
            c.saver.save_final(asdict(self.progress), lambda: True)
        except Exception as error:
            why = first_line(error)
            return f"Nothing more could be saved ({why}); the next start continues from the last snapshot."
        return f"Saved to {c.folder.current} at step {self.progress.step:,}; the next start continues from there."

    def _start(self) -> None:
        """Save a new lineage, warm up, then load the optimizer's state."""
        c = self.c
        if c.is_new:
            with c.log.stage("first checkpoint"):
                c.saver.save()  # reveals a disk without room, and keeps the tokenizer
        with c.log.stage("compile" if c.compile_cache else "warm-up"):
            warm_up(c.runner, c.evaluator, c.step_shape, c.warmup_repeats, c.draw)
        if c.runner.timer is not None:
            c.runner.timer.take()  # what was compiled
        if missing := load_optimizer_state(c.engine, c.optimizer, c.ranks):
            c.log.say(f"The optimizer's state lacks {len(missing)} parameters; their moments start at zero.")
        self._average.start(c.engine)
        c.optimizer = None  # twice the model's size, and the engine has it now
        if c.is_reshaped:
            c.saver.save()  # a restart before the next checkpoint must not measure once more
        if c.compile_cache:
            c.compile_cache.done()
        freeze_gc()  # a compiler leaves hundreds of thousands of objects

    def _next_batch(self, multiple: int) -> tuple[Batch, Agreement]:
        """Return the next step's batch, of `multiple` times the preset's rows, and the ranks' agreement. A signal, a
        checkpoint folder that was moved and the end of all sources end the run here.

        Where rows change their length it is saved, and begins again from there: so it is the run that any restart from
        there gives.
        """
        c, progress = self.c, self.progress
        if c.row_length != c.shape.seq_length and not c.guard.skipped_in_a_row:
            self._log_steps()
            c.saver.save_final(asdict(progress), self.watch.stopping)
            agreed = c.ranks.agree(self._report())
            if agreed.stops:
                self._interrupt(agreed)
            raise RowsChanged(c.shape.seq_length, c.row_length)
        try:
            batch, agreed = c.batches.next(self._report, multiple)
        except AllSourcesFailed as failed:
            c.saver.save_final(asdict(progress), self.watch.stopping)
            raise SourcesFailed(
                f"{failed} Saved to {c.folder.current} at {count(progress.tokens_in_run)} tokens of this run; "
                "the next start continues from there."
            ) from None
        if batch is None:
            self._interrupt(agreed)
        return batch, agreed

    def _step(self, batch: Batch, agreed: Agreement) -> StepResult:
        c, train = self.c, self.c.train
        tokens, continued = self.progress.tokens_in_run, self.progress.run > 1
        step_tokens = c.shape.rows_per_step * c.shape.row_length
        since = self.progress.longer_since
        values = hyperparameters(train, tokens, c.token_budget, continued, step_tokens, since)
        deepspeed_engine.set_hyperparameters(c.engine, values)
        deepspeed_engine.set_accumulation_steps(c.engine, len(batch.input_ids))
        if c.engine.module.config.dropout:
            seed_batch(train.seed, batch.number, c.ranks.rank)
        wrap = self._abandonable if agreed.long_step or c.ranks.world_size == 1 else iter

        def then_moving(micro_batches: Iterable[T]) -> Iterator[T]:
            yield from wrap(micro_batches)
            self._weights_move = True

        return c.runner.run(batch, agreed.labels, c.guard, c.draw(batch), then_moving)

    def _advance(self, batch: Batch, step: StepResult) -> None:
        """Count a step. Of a skipped one only the data position advances; too many in a row end the attempt."""
        c, progress = self.c, self.progress
        c.batches.advance(batch, step.loss_sums, progress.tokens_in_run)
        c.guard.after_step(step.loss, step.skipped)
        curriculum = c.runner.curriculum
        if step.skipped:
            progress.skipped += 1
            if curriculum:
                curriculum.forget_step()
            if c.guard.exhausted:
                c.diverge(f"{c.guard.skipped_in_a_row} steps in a row were skipped, the last for a {step.verdict}")
            return
        progress.step += 1
        progress.tokens_in_run += step.labels
        progress.tokens_total += step.labels
        self._average.add(c.engine, progress.tokens_in_run, step.labels)
        c.telemetry.add(step)
        c.overfitting.after_step(step.loss)
        if curriculum:
            curriculum.after_step(step.labels)

    def _log_steps(self) -> None:
        c, timer = self.c, self.c.runner.timer
        slow_rank = {} if timer is None else {"slow_rank": find_slow_rank(c.ranks, timer.take())}
        c.telemetry.log_steps(self.progress, deepspeed_engine.learning_rate(c.engine), slow_rank)

    def _evaluate(self) -> bool:
        """Evaluate and log; return False where a signal ended it early."""
        c, progress = self.c, self.progress
        if c.evaluator.is_empty:
            return True
        with c.log.stage("evaluation"):
            try:
                figures = c.evaluator.evaluate(c.engine, self._abandonable)
            except Abandoned:
                return False  # the next step's agreement ends the run
            if not math.isfinite(figures["ce"]):
                c.diverge("The validation loss is not finite")
            progress.evaluation = {key: figures[key] for key in ("ce", "perplexity", "bits_per_byte")}
            shown = samples.show(c.engine, c.evaluator.rows, c.tokenizer, progress.step, c.ranks)
        counts = {"step": progress.step, "tokens_total": progress.tokens_total}
        c.log.write("evaluation", **counts, **figures, **shown, data=c.batches.reading())
        if message := c.overfitting.after_evaluation(progress.step, figures["ce"], figures["tokens"]):
            c.log.write("advice", topic="overfitting", message=message)
        return True

    def _finish(self, tokens: int) -> TrainResult:
        """Evaluate and save for the last time, after `tokens` since the start."""
        c, progress = self.c, self.progress
        self._log_steps()
        c.batches.log_filtered()
        self._weights_move = True
        self._average.take_place(c.engine)
        self._weights_move = False
        if not self._evaluate():
            self._interrupt(c.ranks.agree(self.watch.agreement()))  # the next start evaluates
        progress.finished = True
        c.saver.save_final(asdict(progress), self.watch.stopping)  # whatever signal comes now, the run is done
        figures = progress.evaluation or {}
        return TrainResult(
            tokens=progress.tokens_in_run,
            tokens_per_second=tokens / max(c.telemetry.train_seconds, 1e-9),
            eval_loss=figures.get("ce"),
            eval_perplexity=figures.get("perplexity"),
            bits_per_byte=figures.get("bits_per_byte"),
            snapshot=c.folder.current,
        )

    def _report(self) -> Agreement:
        """What this rank reports before a step."""
        return replace(
            self.watch.agreement(),
            report=int(self.c.telemetry.due),
            save=int(self.c.saver.due),
            moved=int(not self.c.folder.hold.in_place()),
            long_step=int(self.c.ranks.is_main and self._step_seconds > LONG_STEP_SECONDS),
        )

    def _interrupt(self, agreed: Agreement) -> NoReturn:
        """Save and end because of a signal, or because the checkpoint folder was moved."""
        c, begun_in = self.c, self.c.folder.folder
        c.saver.save_final(asdict(self.progress), self.watch.stopping)
        c.batches.log_filtered()
        if c.ranks.on_main(lambda: c.saver.moved):
            raise FolderMoved(
                f"{begun_in} was no longer the folder of this run at step {self.progress.step:,}; saved to "
                f"{c.folder.current}. The next start continues from there if that folder is {begun_in} then."
            )
        number = signal.SIGINT if agreed.interrupt else signal.SIGTERM if agreed.terminate else signal.SIGHUP
        raise Interrupted(
            number,
            f"{number.name} at step {self.progress.step:,}; saved to {c.folder.current}, "
            "the next start continues from there.",
        )
