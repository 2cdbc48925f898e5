"""The latent core: parts that predict where the text is going, trained beside the trunk on its own states."""

from model.latent.core import FIGURES, LatentCore
from model.latent.foresight import Foresight, foresee
from model.latent.look_ahead import OBJECTIVES, LookAhead, LookAheadSampler, require_room
from model.latent.value import expected_nll

__all__ = [
    "FIGURES",
    "OBJECTIVES",
    "Foresight",
    "LatentCore",
    "LookAhead",
    "LookAheadSampler",
    "expected_nll",
    "foresee",
    "require_room",
]
