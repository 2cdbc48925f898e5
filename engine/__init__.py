"""Trains a preset: the run and its ranks, its optimizer steps, its events and its checkpoints.

from engine import load_preset, train, TOKENS_PER_RUN
result = train(load_preset("configs/00_best_general.json"))

`train` and its result are imported when they are asked for: torch and DeepSpeed take seconds, and the first screen
does without them.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from engine.installed import require_installed

require_installed()

from engine.config import TOKENS_PER_RUN, Preset, load_preset  # noqa: E402

if TYPE_CHECKING:
    from engine.run.state import TrainResult
    from engine.training import train

__all__ = ["TOKENS_PER_RUN", "Preset", "TrainResult", "load_preset", "train"]

# torch warns DeepSpeed that some functions will be renamed; a user can do nothing about it.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")

_FILES = {"TrainResult": "engine.run.state", "train": "engine.training"}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FILES[name]), name)
