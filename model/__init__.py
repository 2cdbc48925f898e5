"""What is learned: the language model, its snapshots and its decoding; knows nothing of data, ranks or runs."""

from model import snapshot
from model.config import AuxiliaryConfig, ModelConfig
from model.language_model import LanguageModel, load
from model.transformer import TransformerLM

__all__ = ["AuxiliaryConfig", "LanguageModel", "ModelConfig", "TransformerLM", "load", "snapshot"]
