"""What a preset says about a model, and how large that makes it. Needs no torch."""

from .auxiliary import AuxiliaryConfig
from .room import require_room
from .sections import ADDITIONS, ModelConfig

__all__ = ["ADDITIONS", "AuxiliaryConfig", "ModelConfig", "require_room"]
