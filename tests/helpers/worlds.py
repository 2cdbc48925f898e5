"""One lineage on several world sizes in turn, compared with one process."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from engine.checkpoint.folder import CURRENT
from engine.events import read
from tests.helpers.text import REPOSITORY
from tests.helpers.training import by_step, environment

GLOBAL_ROWS, LENGTH = 24, 32  # of a step


@dataclass
class Told:
    """What a folder's processes wrote down."""

    rows: list[list[str]] = field(default_factory=list)  # of each step, in the order of the run
    losses: dict[int, float] = field(default_factory=dict)
    notices: str = ""


def run_leg(tiny, folder: Path, world_size: int, stage: int, budget: int, steps: int, told: Told) -> None:
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
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={world_size}"] if world_size > 1 else []
    script = str(REPOSITORY / "tests/helpers/workers/worlds.py")
    arguments = [preset.model_dump_json(by_alias=True), str(folder), str(budget), str(steps)]
    finished = subprocess.run(
        [sys.executable, *launcher, script, *arguments],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]
    told.notices += finished.stdout
    told.losses = by_step(read(folder))
    ranks = [[json.loads(line) for line in (folder / f"rows-{r}.jsonl").open()] for r in range(world_size)]
    for shares in zip(*ranks, strict=True):
        first, last, lanes = len(told.rows) * GLOBAL_ROWS, shares[0]["row"], shares[0]["lanes"]
        assert last - first == GLOBAL_ROWS
        given = [iter(share["rows"]) for share in shares]
        told.rows.append([next(given[row % lanes % world_size]) for row in range(first, last)])
        assert not any(list(rest) for rest in given)
    for path in folder.glob("rows-*.jsonl"):
        path.unlink()


def compare(tiny, tmp_path: Path, legs: list[tuple[int, int]], steps: int) -> tuple[Told, Told]:
    """Train once uninterrupted, and once in `legs` of (processes, stage), `steps` steps each, and compare the two."""
    budget = len(legs) * steps * GLOBAL_ROWS * LENGTH - LENGTH
    whole, parts = Told(), Told()
    run_leg(tiny, tmp_path / "whole", 1, 1, budget, 0, whole)
    for number, (world_size, stage) in enumerate(legs):
        last = number == len(legs) - 1
        run_leg(tiny, tmp_path / "parts", world_size, stage, budget, 0 if last else steps, parts)

    assert parts.rows == whole.rows and len(whole.rows) == len(legs) * steps
    assert parts.losses.keys() == whole.losses.keys()
    apart = max(abs(parts.losses[step] - loss) for step, loss in whole.losses.items())
    assert apart <= 1e-3
    saved = [torch.load(tmp_path / name / CURRENT, weights_only=True)["progress"] for name in ("whole", "parts")]
    assert all(saved[0][key] == saved[1][key] for key in ("run", "step", "tokens_in_run", "tokens_total"))
    assert saved[0]["evaluation"]["ce"] == pytest.approx(saved[1]["evaluation"]["ce"], abs=1e-3)
    return whole, parts
