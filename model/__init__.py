"""What is learned: the language model, its snapshots and its decoding; knows nothing of data, ranks or runs."""

from . import snapshot
from .config import AuxiliaryConfig, ModelConfig
from .language_model import LanguageModel, load
from .transformer import TransformerLM

__all__ = ["AuxiliaryConfig", "LanguageModel", "ModelConfig", "TransformerLM", "load", "snapshot"]
