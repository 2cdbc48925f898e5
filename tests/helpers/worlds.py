"""One lineage on several world sizes in turn, compared with one process."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.events import read
from tests.helpers.folders import progress
from tests.helpers.processes import run_ranks
from tests.helpers.text import REPOSITORY
from tests.helpers.training import by_step

GLOBAL_ROWS, LENGTH = 24, 32  # of a step


@dataclass
class Notes:
    """What the processes of a folder wrote down."""

    rows: list[list[str]] = field(default_factory=list)  # of each step, in the order of the run
    losses: dict[int, float] = field(default_factory=dict)
    printed: str = ""


def run_leg(tiny, folder: Path, world_size: int, stage: int, budget: int, steps: int, notes: Notes) -> None:
    """Train on with `world_size` processes: `steps` steps, or with 0 to the end of the budget."""
    preset = tiny(
        train={
            "per_gpu_batch_size": GLOBAL_ROWS // 2 // world_size,
            "accumulation_steps": 2,
            "zero_stage": stage,
            "eval_interval_tokens": 10**6,
        }
    )
    folder.mkdir(exist_ok=True)
    arguments = [preset.model_dump_json(by_alias=True), str(folder), str(budget), str(steps)]
    notes.printed += run_ranks(REPOSITORY / "tests/helpers/workers/worlds.py", *arguments, processes=world_size)
    notes.losses = by_step(read(folder))
    ranks = [[json.loads(line) for line in (folder / f"rows-{r}.jsonl").open()] for r in range(world_size)]
    for shares in zip(*ranks, strict=True):
        first, last, lanes = len(notes.rows) * GLOBAL_ROWS, shares[0]["row"], shares[0]["lanes"]
        assert last - first == GLOBAL_ROWS
        given = [iter(share["rows"]) for share in shares]
        notes.rows.append([next(given[row % lanes % world_size]) for row in range(first, last)])
        assert not any(list(rest) for rest in given)
    for path in folder.glob("rows-*.jsonl"):
        path.unlink()


def compare(tiny, tmp_path: Path, legs: list[tuple[int, int]], steps: int) -> tuple[Notes, Notes]:
    """Train once uninterrupted, and once in `legs` of (processes, stage), `steps` steps each, and compare the two."""
    budget = len(legs) * steps * GLOBAL_ROWS * LENGTH - LENGTH
    whole, parts = Notes(), Notes()
    run_leg(tiny, tmp_path / "whole", 1, 1, budget, 0, whole)
    for number, (world_size, stage) in enumerate(legs):
        last = number == len(legs) - 1
        run_leg(tiny, tmp_path / "parts", world_size, stage, budget, 0 if last else steps, parts)

    assert parts.rows == whole.rows and len(whole.rows) == len(legs) * steps
    assert parts.losses.keys() == whole.losses.keys()
    apart = max(abs(parts.losses[step] - loss) for step, loss in whole.losses.items())
    assert apart <= 1e-3
    saved = [progress(tmp_path / name) for name in ("whole", "parts")]
    assert all(saved[0][key] == saved[1][key] for key in ("run", "step", "tokens_in_run", "tokens_total"))
    assert saved[0]["evaluation"]["ce"] == pytest.approx(saved[1]["evaluation"]["ce"], abs=1e-3)
    return whole, parts
