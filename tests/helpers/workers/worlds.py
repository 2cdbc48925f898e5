"""Run by tests/integration/test_worlds.py in one or more processes: trains on, writes down the rows of each step, and
may stop early.

python worlds.py PRESET_JSON CHECKPOINTS TOKEN_BUDGET STEPS

Each rank appends to CHECKPOINTS/rows-RANK.jsonl. After STEPS steps, if that is not 0, rank 0 is sent a SIGTERM.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from engine import train
from engine.config import parse_preset
from engine.device.ranks import join, leave
from engine.errors import Interrupted
from engine.run.step import StepRunner


def digests(batch) -> list[str]:
    """Of every row that is not padding, in order: its ids, labels and segments."""
    parts = [part.flatten(0, 1) for part in (batch.input_ids, batch.labels, batch.segment_ids)]
    rows = zip(*(part.numpy() for part in parts), strict=True)
    return [hashlib.sha1(b"".join(map(bytes, row))).hexdigest() for row in rows if (row[1] != -100).any()]


def main() -> None:
    preset, folder = parse_preset(json.loads(sys.argv[1])), Path(sys.argv[2])
    budget, steps = map(int, sys.argv[3:])
    torch.set_num_threads(1)
    ranks = join()
    made = 0

    def recorded(runner, batch, *arguments, **options):
        nonlocal made
        answer = original(runner, batch, *arguments, **options)
        if batch.number < 0:  # the warm-up's
            return answer
        place = {"rank": ranks.rank, "world": ranks.world_size, "lanes": batch.state["num_lanes"]}
        line = {"row": batch.state["row"], **place, "rows": digests(batch)}
        with (folder / f"rows-{ranks.rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        made += 1
        if made == steps and ranks.is_main:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    original, StepRunner.run = StepRunner.run, recorded
    try:
        train(preset, token_budget=budget, checkpoint_dir=folder, ranks=ranks)
    except Interrupted as error:
        if not steps:  # by a launcher, which starts it again
            leave()
            raise SystemExit(error.status) from None
    leave()


if __name__ == "__main__":
    main()
