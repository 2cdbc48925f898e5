"""Run by tests/unit/engine/run/test_curriculum.py in one or more processes: a curriculum over `rows`, of which each
rank counts its share.

python curriculum.py STATE.json FIRST LAST

Continues STATE.json, takes the steps FIRST to LAST - 1, writes the state back and, into STATE.json.told beside it, what
the model was told before each step.
"""

import json
import os
import sys
from pathlib import Path

import torch

from engine.data.curriculum import Curriculum
from engine.device.ranks import Ranks, join, leave
from model.config import AuxiliaryConfig

STEPS, ROWS, LENGTH, LABELS_A_STEP = 24, 8, 16, 96
CONFIG = AuxiliaryConfig(curriculum_burn_in_tokens=700, curriculum_interval_tokens=300)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """NLLs and labels (STEPS, ROWS, LENGTH); every fourth row is half padding, and one is nothing else."""
    generator = torch.Generator().manual_seed(0)
    difficulty = 8 * torch.rand(STEPS, ROWS, 1, generator=generator)
    token_nll = difficulty * torch.rand(STEPS, ROWS, LENGTH, generator=generator)
    labels = torch.zeros(STEPS, ROWS, LENGTH, dtype=torch.int64)
    labels[:, ::4, LENGTH // 2 :] = -100
    labels[:, 1] = -100
    return token_nll.masked_fill(labels == -100, 0.0), labels


def take(curriculum: Curriculum, first: int, last: int, ranks: Ranks) -> list[list[float] | None]:
    """The thresholds before each of these steps."""
    token_nll, labels = rows()
    told = []
    for step in range(first, last):
        told.append(None if curriculum.thresholds is None else curriculum.thresholds.tolist())
        for row in range(ranks.rank, ROWS, ranks.world_size):  # one row a micro-batch
            curriculum.add(token_nll[step, row, None], labels[step, row, None])
        curriculum.after_step(LABELS_A_STEP)
    return told


def main() -> None:
    path, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ranks = join()
    curriculum = Curriculum(CONFIG, ranks)
    curriculum.load(json.loads(path.read_text()))
    told, state = take(curriculum, first, last, ranks), curriculum.state()
    if ranks.is_main:
        path.write_text(json.dumps(state))
        path.with_name(path.name + ".told").write_text(json.dumps(told))
    leave()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's own exit handlers have nothing to add
