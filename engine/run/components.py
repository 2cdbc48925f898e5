"""What one run is made of, and what it saves of that."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from engine.checkpoint.background import BackgroundSaver, Checkpoint
from engine.checkpoint.folder import CheckpointFolder
from engine.checkpoint.state import OptimizerState
from engine.checks.overfitting import OverfittingWatch
from engine.config import TrainConfig
from engine.data.batches import Batches
from engine.device import deepspeed_engine
from engine.device.compiling import CompileCache
from engine.device.deepspeed_engine import Engine
from engine.device.optimizer_state import optimizer_state
from engine.device.ranks import Ranks
from engine.errors import Diverged
from engine.events import EventLog
from engine.optim.schedule import row_length
from engine.run.evaluation import Evaluator
from engine.run.stability import StabilityGuard, all_finite
from engine.run.state import Progress, RunState
from engine.run.step import StepRunner
from engine.run.telemetry import Telemetry
from model.latent import LookAhead, LookAheadSchedule
from model.snapshot import Snapshot
from sources.loading.loader import Batch, BatchShape
from sources.rows.tokenizer import TextTokenizer


@dataclass
class Components:
    """What one run is made of. The same on every rank but for `optimizer`, which rank 0 alone has."""

    name: str  # of the preset
    train: TrainConfig
    preset_values: dict[str, Any]  # the whole preset as JSON, for snapshots and the run event
    token_budget: int
    longest_rows: int  # tokens of the last rows of a run
    progress: Progress
    shape: BatchShape  # without padding
    tokenizer: TextTokenizer
    engine: Engine
    compile_cache: CompileCache | None
    by_kernel: bool  # matrix products
    warmup_repeats: int
    optimizer: OptimizerState | None  # the checkpoint's, until it is loaded after the warm-up
    is_new: bool  # a new lineage
    is_reshaped: bool  # it has been measured that other micro-batches than the checkpoint's are better
    ranks: Ranks
    log: EventLog
    folder: CheckpointFolder
    runner: StepRunner
    evaluator: Evaluator
    batches: Batches
    guard: StabilityGuard
    look_ahead: LookAheadSchedule
    telemetry: Telemetry
    overfitting: OverfittingWatch
    saver: BackgroundSaver

    @property
    def step_shape(self) -> BatchShape:
        """The shape of a step's tensors: with the padding rows that an uneven number of ranks needs."""
        return replace(self.shape, micro_batch_size=self.evaluator.micro_batch_size)

    @property
    def row_length(self) -> int:
        """Tokens of the next step's rows, as the preset says; `shape` has those of this start."""
        return row_length(self.train, self.longest_rows, self.progress.tokens_in_run, self.token_budget)

    def run_state(self) -> RunState:
        """What resumes right after the last step, beside weights and moments. All ranks must call it."""
        curriculum = self.runner.curriculum
        return RunState(
            **self.batches.state(),
            rows_of_pass=self.shape.micro_batch_size,
            row_length=self.shape.row_length,
            parts_begin=self.look_ahead.state(),
            curriculum=curriculum.state() if curriculum else None,
            guard=self.guard.state(),
            overfitting=self.overfitting.state(),
            products="kernel" if self.by_kernel else "torch",
        )

    def capture(self) -> Checkpoint:
        """Copy the run as it is saved. All ranks must call it; raises Diverged on all."""
        weights = deepspeed_engine.weights(self.engine, keep=self.ranks.is_main)
        optimizer = optimizer_state(self.engine, keep=self.ranks.is_main)
        moments = [tensor for tensors in optimizer["moments"].values() for tensor in tensors.values()]
        if not self.ranks.on_main(lambda: all_finite([*weights.values(), *moments])):
            self.diverge("The weights are not finite")
        tokenizer = {"vocab_size": self.tokenizer.vocab_size, "eos_token_id": self.tokenizer.eos_id}
        snapshot = Snapshot(
            model=weights,
            config=self.engine.module.config.model_dump() | tokenizer,
            tokenizer=self.tokenizer.to_json(),
            preset=self.preset_values,
            progress=asdict(self.progress),
        )
        return snapshot, optimizer, dict(self.run_state())

    def draw(self, batch: Batch) -> list[LookAhead] | None:
        """Each micro-batch's draws for the lookahead core; None without one."""
        return self.look_ahead.sample(batch.segment_ids, batch.number, self.progress.tokens_total, self.ranks.rank)

    def diverge(self, what: str) -> NoReturn:
        """Raise Diverged, on all ranks, without a save; train() stops or rolls back."""
        advice = f"lower train.learning_rate in preset {self.name}"
        if self.train.on_divergence == "stop":
            advice += ', or set train.on_divergence to "rollback"'
        raise Diverged(
            what,
            f"The snapshots are untouched; {advice}.",
            step=self.progress.step,
            skipped=self.progress.skipped,
            state={**self.run_state(), "guard": None},  # other weights have other losses
            saved=self.ranks.on_main(self.saver.has_saved),
        )

    def close(self) -> None:
        self.saver.close()
        self.batches.close()
        self.engine.destroy()
        if self.compile_cache:
            self.compile_cache.close()
