"""The language model, its snapshots and its decoding; independent of data, ranks and runs.

from model import load  # installed: from forethought import load

lm = load("checkpoints/lm_current.pth")
lm.generate("Q: Who wrote Hamlet?\\nA:", max_new_tokens=64)

A name is imported when it is asked for: torch takes seconds, and config/ does without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .config import AuxiliaryConfig, ModelConfig

if TYPE_CHECKING:
    from . import snapshot
    from .decoding.writing import Generation
    from .export import ExportError
    from .language_model import LanguageModel, Score, TokenForecast
    from .loading import from_transformers, load
    from .transformer import TransformerLM

__all__ = [
    "AuxiliaryConfig",
    "ExportError",
    "Generation",
    "LanguageModel",
    "ModelConfig",
    "Score",
    "TokenForecast",
    "TransformerLM",
    "from_transformers",
    "load",
    "snapshot",
]

_FILES = {
    "decoding.writing": ("Generation",),
    "export": ("ExportError",),
    "language_model": ("LanguageModel", "Score", "TokenForecast"),
    "loading": ("from_transformers", "load"),
    "transformer": ("TransformerLM",),
}


def __getattr__(name: str) -> Any:
    if name == "snapshot":
        return importlib.import_module(".snapshot", __name__)
    file = next((file for file, names in _FILES.items() if name in names), None)
    if file is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{file}", __name__), name)
