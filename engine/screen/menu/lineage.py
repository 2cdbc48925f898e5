"""What a checkpoint folder holds, read without torch: the run that Enter resumes, and how fast runs were."""

import contextlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine import events
from engine.checkpoint.names import NAMES
from model.snapshot.values import read_values
from model.snapshot.vetting import SnapshotError

LEAST_FLOPS = 1e7  # of a token: a smaller model waits for memory and Python, and tells nothing of larger ones
FEWEST_REPORTS = 3  # of a run whose throughput counts: the first ones include what is compiled and fetched
LAST_REPORTS = 20


@dataclass(frozen=True)
class Lineage:
    """The newest snapshot that can be read: the name of its preset ("" where it has none), and how far its run is."""

    preset: str
    run: int
    tokens_in_run: int
    finished: bool
    loss: float | None

    def sentence(self, tokens_per_run: int) -> str:
        """How far the run is: "run 2, 41%, loss 4.02"."""
        loss = "" if self.loss is None else f", loss {self.loss:.2f}"
        if self.finished:
            return f"run {self.run} done{loss}"
        return f"run {self.run}, {self.tokens_in_run / tokens_per_run:.0%}{loss}"

    @property
    def verb(self) -> str:
        """What Enter does with it."""
        return f"starts run {self.run + 1}" if self.finished else "resumes"


@dataclass(frozen=True)
class Throughput:
    """What runs in a folder reached: tokens/s by preset name, and FLOP/s by precision, of this machine's runs."""

    tokens: dict[str, float]
    flops: dict[str, float]


def read_lineage(folder: Path) -> Lineage | None:
    """Return what `folder` holds; None without a snapshot that can be read."""
    for name in NAMES:
        with contextlib.suppress(SnapshotError):
            found = read_values(folder / name)
            progress, preset = found.get("progress") or {}, found.get("preset") or {}
            return Lineage(
                preset_name(preset),
                _count(progress, "run") or 1,
                _count(progress, "tokens_in_run"),
                progress.get("finished") is True,
                _loss(folder, _count(progress, "step"), progress.get("evaluation")),
            )
    return None


def measured(folder: Path, lineage: Lineage | None, machine: str | None = None) -> Throughput:
    """What the latest runs in `folder` reached: the median of the last reports of each.

    With `machine`, a machine in words, runs on others are left out; so are the FLOP/s of very small models. Of a run so
    long that its beginning is not looked at, the lineage says which preset it has.
    """
    recent = events.read(folder, events.RECENT_BYTES)
    reports: defaultdict[str, list[float]] = defaultdict(list)
    flops: dict[str, float] = {}
    begun = any(event["event"] == "run" for event in recent)
    name, cost, precision = "" if begun or lineage is None else lineage.preset, None, ""
    for event in recent:
        rate = event.get("tokens_per_second")
        if event["event"] == "run":
            elsewhere = machine is not None and event.get("machine") not in (None, machine)
            name = "" if elsewhere else preset_name(event.get("preset"))
            derived = event.get("derived")
            derived = derived if isinstance(derived, dict) else {}
            cost, precision = derived.get("flops_per_token"), derived.get("precision")
            reports.pop(name, None)  # of an earlier run, which may have had other settings
        elif event["event"] == "step" and name and isinstance(rate, int | float) and rate > 0:
            reports[name].append(rate)
            if isinstance(cost, int | float) and cost >= LEAST_FLOPS and len(reports[name]) >= FEWEST_REPORTS:
                flops[str(precision)] = cost * median(reports[name][-LAST_REPORTS:])
    tokens = {of: median(rates[-LAST_REPORTS:]) for of, rates in reports.items() if len(rates) >= FEWEST_REPORTS}
    return Throughput(tokens, flops)


def preset_name(preset: Any) -> str:
    """The name in a preset's values; empty where there is none."""
    name = preset.get("name") if isinstance(preset, dict) else None
    return name if isinstance(name, str) else ""


def _loss(folder: Path, step: int, evaluation: Any) -> float | None:
    """The training loss that was reported last before `step`; without one the validation loss."""
    for event in reversed(events.read(folder, events.RECENT_BYTES)):
        loss, at = event.get("loss"), event.get("step")
        if event["event"] == "step" and isinstance(loss, float) and isinstance(at, int) and at <= step:
            return loss
    loss = evaluation.get("ce") if isinstance(evaluation, dict) else None
    return loss if isinstance(loss, float) else None


def _count(progress: Any, key: str) -> int:
    value = progress.get(key) if isinstance(progress, dict) else None
    return value if type(value) is int and value >= 0 else 0
