"""The language model, its snapshots and its decoding; independent of data, ranks and runs.

from model import load  # installed: from forethought import load

lm = load("checkpoints/lm_current.pth")
lm.generate("Q: Who wrote Hamlet?\\nA:", max_new_tokens=64)
"""

from . import snapshot
from .config import AuxiliaryConfig, ModelConfig
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
