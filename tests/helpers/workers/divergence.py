"""Run by tests/integration/test_divergence.py in two processes: a run of which some steps are bad on rank 1.

python divergence.py PRESET_JSON CHECKPOINTS BAD_STEPS OUTPUT.json

Writes down, for each rank, how the run ended (0, or status and sentence) and the seed of each micro-batch.
"""

import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from engine import train
from engine.config import parse_preset
from engine.device.ranks import join, leave
from engine.errors import RunError
from model import TransformerLM
from tests.helpers.training import TOKENS_PER_STEP


def main() -> None:
    torch.set_num_threads(1)
    ranks = join()
    original, micro_batches, seeds = TransformerLM.forward, itertools.count(), []
    bad = json.loads(sys.argv[3])

    def forward(self: TransformerLM, input_ids: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, token_nll = original(self, input_ids, *inputs)
        if self.training and input_ids.any():  # not the warm-up's
            seeds.append(torch.initial_seed())
            if next(micro_batches) // 2 in bad and ranks.rank == 1:
                loss_sum, token_nll = loss_sum * math.nan, token_nll * math.nan
        return loss_sum, token_nll

    TransformerLM.forward = forward
    preset, ended = parse_preset(json.loads(sys.argv[1])), 0
    try:
        train(preset, token_budget=12 * TOKENS_PER_STEP, checkpoint_dir=sys.argv[2], ranks=ranks)
    except RunError as error:
        ended = [error.status, str(error)]
    everyone = ranks.gather({"ended": ended, "seeds": seeds})
    if ranks.is_main:
        Path(sys.argv[4]).write_text(json.dumps(everyone))
    leave()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's own exit handlers have nothing to add
