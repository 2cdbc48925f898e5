"""The training loop: one run of TOKENS_PER_RUN tokens, from the newest snapshot to the next.

A step reads as a paragraph: take a batch, agree with the other ranks, set the learning rate, forward and backward,
count; now and then report, evaluate, save. The batch's data state becomes the run's state only after the step.
"""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine import machine, zero
from engine.checkpoints import CheckpointFolder
from engine.console import Console, count
from engine.curriculum import Curriculum
from engine.errors import Interrupted, RunError, SourcesFailed
from engine.evaluation import evaluate, held_out_rows, write_sample
from engine.feed import Feed
from engine.memory import is_out_of_memory, require_memory, too_large
from engine.metrics import Metrics
from engine.preset import Preset
from engine.ranks import Agreement, Ranks, StopRequest, join, stop_on_signals
from engine.resume import Beginning, begin
from engine.saving import Copy, Saving
from engine.schedule import learning_rate
from engine.step import Tally, mean_losses, train_step
from model.snapshot import Snapshot
from sources.loader import Batch
from sources.registry import AllSourcesFailed

TOKENS_PER_RUN = 100_000_000


@dataclass(frozen=True)
class TrainResult:
    """What a finished run has to show. `eval_*` are None where the sources held nothing out."""

    tokens: int  # of this run
    tokens_per_second: float  # of this process's steps, evaluations and saves left out
    eval_loss: float | None  # nats per held-out token
    eval_perplexity: float | None
    bits_per_byte: float | None
    snapshot: Path


def train(
    preset: Preset,
    *,
    token_budget: int = TOKENS_PER_RUN,
    checkpoint_dir: str | Path = "checkpoints",
    ranks: Ranks | None = None,
    may_archive: Callable[[str], bool] = lambda sentence: False,
) -> TrainResult:
    """Trains one run, continuing whatever `checkpoint_dir` holds, and returns its result.

    Raises a RunError (engine/errors.py) with the exit status for whatever ends the run early; a signal saves first.
    """
    ranks = ranks or join()
    console = Console(enabled=ranks.is_main)
    folder = CheckpointFolder(checkpoint_dir)
    with ExitStack() as holding, stop_on_signals() as stop:
        ranks.on_main(lambda: holding.enter_context(folder.held()))
        beginning = begin(preset, token_budget, folder, ranks, console, may_archive)
        metrics = Metrics(folder.folder, console, ranks.is_main)  # only now: an archived lineage took its own along
        try:
            with (
                closing(metrics),
                closing(Run(preset, token_budget, beginning, folder, ranks, console, metrics, stop)) as run,
            ):
                return run.train()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise too_large(preset, ranks) from None
            raise


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
        stop: StopRequest,
    ):
        self.preset, self.token_budget = preset, token_budget
        self.folder, self.ranks, self.console, self.metrics, self.stop = folder, ranks, console, metrics, stop
        self.progress, self.tokenizer, self.model = beginning.progress, beginning.tokenizer, beginning.model
        self.model_config = beginning.model_config
        require_memory(preset, self.model, ranks)
        # Counted before the engine takes the weights: stage 3 leaves each rank with empty ones.
        self.size = {"parameters": self.model.num_parameters(), "flops_per_token": self.model.flops_per_token()}
        self._announce(beginning)
        self.bf16 = machine.choose_bf16(preset.train.precision, ranks, console)
        self.engine = zero.initialize(self.model, preset.train, ranks, self.bf16)
        zero.load_optimizer_state(self.engine, beginning.optimizer, ranks)
        self.compiled = machine.choose_compile(preset.train.compile, ranks, console)
        if self.compiled:
            self.engine.compile()
        self.held_out = held_out_rows(beginning.opened, preset, self.tokenizer, ranks, folder.folder, beginning.cache)
        self.curriculum = Curriculum(preset.auxiliary, ranks) if preset.auxiliary.enable_curriculum else None
        if self.curriculum and (beginning.data_state or {}).get("curriculum"):
            self.curriculum.load(beginning.data_state["curriculum"])
        self.feed = Feed(preset, beginning, ranks, metrics)
        saved = asdict(self.progress) if self.progress.step else None
        interval = preset.train.save_interval_minutes
        self.saving = Saving(self._copy, interval, folder, ranks, console, metrics, saved)
        self.tally = Tally(len(self.feed.source_names), ranks.device)
        self.watchers = [self.tally, *([self.feed.losses] if self.feed.losses else [])]

    def train(self) -> TrainResult:
        """Steps until the budget is met; evaluates and saves on the way and at the end."""
        self._record_run()
        begin_tokens, self.train_seconds = self.progress.tokens_in_run, 0.0
        self.reported_at = time.monotonic()
        if self.progress.step == 0:
            self.saving.save()  # a disk that cannot take it shows now, and the tokenizer is kept
        interval = self.preset.train.eval_interval_tokens
        next_evaluation = (begin_tokens // interval + 1) * interval
        while self.progress.tokens_in_run < self.token_budget:
            before = time.monotonic()
            batch, agreed = self._next()
            waited = time.monotonic() - before

            zero.set_learning_rate(self.engine, self._learning_rate())
            clip = self.preset.train.gradient_clipping
            grad_norm = train_step(
                self.engine,
                batch,
                agreed.labels,
                self.watchers,
                clip,
                self.ranks,
                document_mask=self.preset.data.document_mask,
                curriculum=self.curriculum,
            )
            self._advance(batch, agreed.labels)
            self.train_seconds += time.monotonic() - before
            self.tally.waited(waited, time.monotonic() - before)

            if agreed.report:
                self._report(grad_norm)
            self.saving.look()
            if next_evaluation <= self.progress.tokens_in_run < self.token_budget:
                self._evaluate()
                next_evaluation += interval
            if agreed.save:
                self.saving.save()
        if self.tally.steps:
            self._report(grad_norm)
        self.feed.tell_counts()
        self._evaluate()
        self._save_at_last()  # whatever signal comes now, the run is done
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

    # One step

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
        now = time.monotonic()
        main, train = self.ranks.is_main, self.preset.train
        return replace(
            self._signals(),
            report=int(main and now - self.reported_at >= train.log_interval_seconds),
            save=int(self.saving.due),
        )

    def _stopping(self) -> bool:
        """Whether any rank has received a signal."""
        return self.ranks.agree(self._signals()).signalled

    def _signals(self) -> Agreement:
        number = self.stop.signal_number
        return Agreement(interrupt=int(number == signal.SIGINT), terminate=int(number == signal.SIGTERM))

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

    def _advance(self, batch: Batch, labels_in_step: int) -> None:
        self.progress.step += 1
        self.progress.tokens_in_run += labels_in_step
        self.progress.tokens_total += labels_in_step
        self.tally.steps += 1
        self.tally.tokens += labels_in_step
        self.feed.advance(batch, labels_in_step)
        if self.curriculum:
            self.curriculum.after_step(labels_in_step)

    # Now and then

    def _report(self, grad_norm: float) -> None:
        """The figures since the last report: one event, one line."""
        loss, by_source = mean_losses(self.ranks.sum_tensor(self.tally.sums()))
        names = self.feed.source_names
        rate = self.tally.tokens / max(self.tally.seconds, 1e-9)
        self.metrics.write(
            "step",
            step=self.progress.step,
            tokens=self.progress.tokens_in_run,
            tokens_total=self.progress.tokens_total,
            share=min(1.0, self.progress.tokens_in_run / self.token_budget),
            loss=loss,
            lr=self.engine.optimizer.param_groups[0]["lr"],
            grad_norm=float(grad_norm),
            tokens_per_second=rate,
            data_wait=self.tally.wait_seconds / max(self.tally.seconds, 1e-9),
            eta_seconds=max(0, self.token_budget - self.progress.tokens_in_run) / max(rate, 1e-9),
            sources={name: value for name, value in zip(names, by_source, strict=True) if value is not None},
            auxiliary={},
            steps=self.tally.steps,
        )
        self.tally.reset()
        self.reported_at = time.monotonic()
        if loss != loss or abs(loss) == float("inf"):
            raise RunError(
                f"The loss is not finite at step {self.progress.step:,}. Such weights are never saved: the next start "
                f"goes on from the last snapshot. Lower train.learning_rate in preset {self.preset.name}."
            )

    def _evaluate(self) -> None:
        if not len(self.held_out.input_ids):
            return  # the sources are too small to hold anything out, which was said at the start
        size = self.preset.train.per_gpu_batch_size
        names = self.feed.source_names
        figures = evaluate(
            self.engine, self.held_out, names, self.ranks, size, self._stopping, self.preset.data.document_mask
        )
        if figures is None:
            return  # a signal came; the next step's agreement leaves
        self.progress.evaluation = {key: figures[key] for key in ("ce", "perplexity", "bits_per_byte")}
        sample = write_sample(
            self.engine, self.model_config, self.held_out, self.tokenizer, self.progress.step, self.ranks
        )
        self.metrics.write("evaluation", step=self.progress.step, **figures, sample=sample)

    def _copy(self) -> Copy:
        """This moment, as it is saved; all ranks must call it."""
        weights = zero.weights(self.engine, keep=self.ranks.is_main)
        optimizer = zero.optimizer_state(self.engine, keep=self.ranks.is_main)
        data = {**self.feed.state(), "curriculum": self.curriculum.state() if self.curriculum else None}
        tokenizer = {"vocab_size": self.tokenizer.vocab_size, "eos_token_id": self.tokenizer.eos_id}
        snapshot = Snapshot(
            model=weights,
            config=self.model_config.model_dump() | tokenizer,
            tokenizer=self.tokenizer.to_json(),
            preset=self.preset.model_dump(mode="json", by_alias=True),
            progress=asdict(self.progress),
        )
        return snapshot, optimizer, data

    def _save_at_last(self) -> None:
        self.saving.save_at_last(asdict(self.progress), impatient=lambda: self.stop.signal_number is not None)

    def _leave(self, agreed: Agreement) -> None:
        """Saves and leaves because of a signal."""
        number = signal.SIGINT if agreed.interrupt else signal.SIGTERM
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

    # The start

    def _announce(self, beginning: Beginning) -> None:
        """What is resumed, and what of the preset is overridden."""
        train = self.preset.train
        if beginning.message:
            self.metrics.write("resume", step=self.progress.step, message=beginning.message)
        if train.train_tokens is not None and train.train_tokens != self.token_budget:
            self.console.say(
                f"train.train_tokens {train.train_tokens:,} is overridden: a run is {self.token_budget:,} tokens."
            )

    def _record_run(self) -> None:
        preset, train = self.preset, self.preset.train
        global_batch = train.per_gpu_batch_size * train.accumulation_steps * self.ranks.world_size
        derived = {
            **self.size,
            "vocab_size": self.tokenizer.vocab_size,
            "global_batch_tokens": global_batch * preset.model.seq_length,
            "held_out_tokens": int((self.held_out.labels != -100).sum()),
            "precision": "bf16" if self.bf16 else "fp32",
            "compiled": self.compiled,
            "lanes": self.feed.num_lanes,
            "data_workers": self.feed.num_workers,
            "world_size": self.ranks.world_size,
            "token_budget": self.token_budget,
            "run": self.progress.run,
        }
        where = machine.describe(self.ranks.device)
        self.metrics.write("run", preset=preset.model_dump(mode="json", by_alias=True), derived=derived, machine=where)
        self.console.say(
            f"Run {self.progress.run} of {preset.name}: {count(derived['parameters'])} parameters, vocabulary "
            f"{derived['vocab_size']:,}, {global_batch} rows of {preset.model.seq_length} tokens a step, "
            f"{derived['precision']}, ZeRO-{train.zero_stage}, {self.ranks.world_size} process"
            f"{'es' if self.ranks.world_size > 1 else ''} on {where}."
        )
        if self.ranks.world_size == 1 and (idle := machine.idle_gpus()):
            self.console.say(f"{idle} more GPUs are idle; start with deepspeed main.py to use them all.")
        if not derived["held_out_tokens"]:
            self.console.say("Nothing is held out: the sources are too small, so there is no evaluation.")
        elif derived["held_out_tokens"] < 0.9 * train.eval_tokens:
            self.console.say(
                f"Held out for evaluation: {derived['held_out_tokens']:,} of the {train.eval_tokens:,} tokens asked, "
                "in whole documents."
            )
