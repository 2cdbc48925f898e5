"""Small random models, one of each kind that other programs have, and their exports; all weights matter in them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model import AuxiliaryConfig, LanguageModel, ModelConfig, TransformerLM
from model.experts import sparse_layers
from tests.helpers.exports import KINDS

SEQ_LENGTH = 1024  # so that 1,000 tokens fit beside a prompt


@pytest.fixture(scope="session")
def make(tokenizer) -> Callable[..., LanguageModel]:
    def made(auxiliary: AuxiliaryConfig | None = None, seq_length: int = SEQ_LENGTH, **options) -> LanguageModel:
        torch.manual_seed(0)
        config = ModelConfig(num_layers=2, num_heads=2, hidden_size=32, seq_length=seq_length, **options)
        model = TransformerLM(config, tokenizer.get_vocab_size(), auxiliary).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases too, and large enough to differ by place
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.15))
            for layer in sparse_layers(model.blocks):  # as balancing leaves them
                layer.router.expert_bias.normal_(std=0.1)
        preset = {"name": "small", "data": {"sources": [{"type": "hf", "dataset": "owner/texts"}]}}
        progress = {"tokens_total": 61_440, "evaluation": {"ce": 3.5, "bits_per_byte": 1.25}}
        return LanguageModel(model, tokenizer.to_str(), 0, preset, progress)

    return made


@pytest.fixture(scope="session", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def lm(kind, make) -> LanguageModel:
    return make(**KINDS[kind])


@pytest.fixture(scope="session")
def folder(kind, lm, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exports") / kind.replace(" ", "-")
    lm.export(path)
    return path
