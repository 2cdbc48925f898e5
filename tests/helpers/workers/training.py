"""Run by train_with of tests/helpers/training.py in one or more processes: trains a preset, and may stop early.

python training.py PRESET_JSON CHECKPOINTS TOKEN_BUDGET STEPS

After STEPS steps, if that is not 0, rank 0 is sent a SIGTERM.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch

from engine import train
from engine.config import parse_preset
from engine.device.ranks import join, leave
from engine.errors import Interrupted
from tests.helpers.training import signal_after


def main() -> None:
    preset, folder = parse_preset(json.loads(sys.argv[1])), Path(sys.argv[2])
    budget, steps = map(int, sys.argv[3:])
    torch.set_num_threads(1)
    ranks = join()
    if steps and ranks.is_main:
        signal_after(folder, steps)
    with contextlib.suppress(Interrupted):
        train(preset, token_budget=budget, checkpoint_dir=folder, ranks=ranks)
    leave()


if __name__ == "__main__":
    main()
