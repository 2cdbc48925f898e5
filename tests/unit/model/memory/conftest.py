"""Small models with memory tokens whose weights are so large that every part matters."""

from collections.abc import Callable

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM

WINDOW, TOKENS = 16, 4


@pytest.fixture(scope="session")
def make() -> Callable[..., TransformerLM]:
    def made(weight: float = 0.0, **changes) -> TransformerLM:
        torch.manual_seed(0)
        keys = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "seq_length": WINDOW, "memory_tokens": TOKENS}
        config = ModelConfig(**(keys | {"init_std": 0.2} | changes))
        return TransformerLM(config, 500, AuxiliaryConfig(memory_reconstruction_weight=weight)).eval()

    return made
