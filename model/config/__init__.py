"""What a preset says about a model, and how large that makes it. Needs no torch."""

from .sections import ADDITIONS, AuxiliaryConfig, ModelConfig, require_room

__all__ = ["ADDITIONS", "AuxiliaryConfig", "ModelConfig", "require_room"]
