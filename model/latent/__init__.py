"""The lookahead core: parts that predict where the text is going, trained beside the trunk on its states."""

from ..tensors import LookAhead
from .core import FIGURES, LookaheadCore
from .look_ahead_sampler import OBJECTIVES, LookAheadSampler, Trained, rows_to_look_ahead
from .look_ahead_schedule import LookAheadSchedule
from .value import expected_nll

__all__ = [
    "FIGURES",
    "OBJECTIVES",
    "LookAhead",
    "LookAheadSampler",
    "LookAheadSchedule",
    "LookaheadCore",
    "Trained",
    "expected_nll",
    "rows_to_look_ahead",
]
