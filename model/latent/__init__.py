"""The latent core: parts that predict where the text is going, trained beside the trunk on its own states."""

from model.latent.core import FIGURES, LatentCore
from model.latent.foresight import Foresight, foresee
from model.latent.look_ahead import OBJECTIVES, LookAhead, LookAheadSampler, Trained, require_room, rows_to_look_ahead
from model.latent.value import expected_nll

__all__ = [
    "FIGURES",
    "OBJECTIVES",
    "Foresight",
    "LatentCore",
    "LookAhead",
    "LookAheadSampler",
    "Trained",
    "expected_nll",
    "foresee",
    "require_room",
    "rows_to_look_ahead",
]
