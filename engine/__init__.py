"""Trains a preset: the run and its ranks, its optimizer steps, its events and its checkpoints.

from engine import load_preset, train, TOKENS_PER_RUN
result = train(load_preset("configs/00_best_general.json"))
"""

import os
import warnings

from engine.installed import require_installed

require_installed()

import torch  # noqa: E402

# DeepSpeed looks for an accelerator when it is imported, and warns where it finds only a CPU.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

# torch warns DeepSpeed that some functions will be renamed; a user can do nothing about it.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")

from engine.config import Preset, load_preset  # noqa: E402
from engine.run.state import TrainResult  # noqa: E402
from engine.train import TOKENS_PER_RUN, train  # noqa: E402

__all__ = ["TOKENS_PER_RUN", "Preset", "TrainResult", "load_preset", "train"]
