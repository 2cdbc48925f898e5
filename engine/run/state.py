"""A run's progress, the state that a checkpoint holds beside weights and moments, and a run's result."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from engine.checks.overfitting import OverfittingState
from engine.data.adaptive import AdaptiveRunState
from engine.data.curriculum import CurriculumState
from engine.data.final_sources import FinalSourcesState
from engine.events import REPORT_NAME
from engine.run.stability import StabilityState
from sources.loading.state import LoaderState


@dataclass
class Progress:
    """How far a lineage (a chain of runs over one set of weights) has come; `step` and `tokens_total` span all runs."""

    run: int = 1
    step: int = 0
    tokens_in_run: int = 0
    tokens_total: int = 0
    evaluation: dict[str, Any] | None = None  # ce, perplexity, bits_per_byte of the latest one
    finished: bool = False  # the run has its last evaluation; the next start begins another run
    skipped: int = 0  # steps whose loss or gradient was refused
    longer_since: int | None = None  # tokens of the run at which its rows became longer last

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Progress":
        """Return a snapshot's progress; unknown keys are ignored, missing ones have their defaults."""
        return cls(**{key: saved[key] for key in cls.__dataclass_fields__ if key in saved})


class RunState(TypedDict):
    """The `data` part of a checkpoint's state, as JSON. Each value is made and read by its owner alone.

    `loader` carries the version (sources/loading/state.py). Older checkpoints may lack the keys after `adaptive`.
    """

    pins: dict[str, Any]  # by source: what reopens the same data (sources/registry.py)
    loader: LoaderState | None  # None before the first step
    adaptive: AdaptiveRunState | None
    rows_of_pass: int  # rows of a micro-batch
    row_length: int  # their tokens
    parts_begin: dict[str, int]  # tokens at which each part of the lookahead core was switched on
    curriculum: CurriculumState | None
    final_sources: FinalSourcesState | None
    guard: StabilityState | None
    overfitting: OverfittingState | None
    products: str  # what multiplies: "kernel" or "torch"


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run; `eval_*` and `bits_per_byte` are None where the sources held nothing out."""

    tokens: int  # of this run
    tokens_per_second: float  # of all ranks since this start, without evaluations and saves
    eval_loss: float | None  # nats per validation token
    eval_perplexity: float | None
    bits_per_byte: float | None
    snapshot: Path

    def summary(self) -> str:
        return (
            f"Done: {self.tokens:,} tokens at {self.tokens_per_second:,.0f} tokens/s. The model is {self.snapshot}; to "
            "generate with it, start main.py again and press g. "
            f"The report is {self.snapshot.with_name(REPORT_NAME)}: open it in a browser."
        )
