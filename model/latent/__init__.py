"""The latent core: parts that predict where the text is going, trained beside the trunk on its own states."""

from .core import FIGURES, LatentCore
from .foresight import Foresight, foresee
from .look_ahead import (
    OBJECTIVES,
    LookAhead,
    LookAheadSampler,
    LookAheadSchedule,
    Trained,
    require_room,
    rows_to_look_ahead,
)
from .value import expected_nll

__all__ = [
    "FIGURES",
    "OBJECTIVES",
    "Foresight",
    "LatentCore",
    "LookAhead",
    "LookAheadSampler",
    "LookAheadSchedule",
    "Trained",
    "expected_nll",
    "foresee",
    "require_room",
    "rows_to_look_ahead",
]
