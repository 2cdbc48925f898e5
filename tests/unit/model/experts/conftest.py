"""A small MLP of experts whose weights are so large that every part matters."""

from collections.abc import Callable

import pytest
import torch

from model import ModelConfig
from model.block import make_mlp
from model.experts import SparseMLP

KEYS = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "seq_length": 12, "bias": False, "num_experts": 4}


@pytest.fixture(scope="session")
def make_sparse() -> Callable[..., SparseMLP]:
    def make(**changes) -> SparseMLP:
        torch.manual_seed(0)
        mlp = make_mlp(ModelConfig(**(KEYS | changes)), layer=0)
        assert isinstance(mlp, SparseMLP)
        for parameter in mlp.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return mlp

    return make
