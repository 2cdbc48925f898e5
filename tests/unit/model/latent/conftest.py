"""Rows of several segments, a small model with every part of the lookahead core, and trunks of several kinds."""

from collections.abc import Callable

import pytest
import torch

from model import ModelConfig, TransformerLM
from model.latent.transition import Transition

ROWS = [[20, 12], [32], [3, 9, 1, 14], [7]]  # lengths of the segments; the rest of a row is padding
TRUNKS = {
    "plain": {},
    "all": {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu"},
    "one_block": {"positions": "rotary", "mlp": "swiglu", "num_layers": 1},
    "no_bias": {"bias": False},
    "streams": {
        "stream_scales": True,
        "skip_connections": True,
        "attention_gates": True,
        "exclusive_attention": True,
        "bigram_rows": 31,
        "embedding_context": 2,
    },
    "experts": {"bias": False, "num_experts": 4},
}


@pytest.fixture(scope="session")
def packed(pack) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input_ids, labels, segment_ids), each (4, 32), of ROWS."""
    return pack(ROWS)[0]


@pytest.fixture
def model(model_with_core) -> TransformerLM:
    return model_with_core


@pytest.fixture(scope="session")
def make_trunk() -> Callable[..., TransformerLM]:
    """A small trunk without a core, by keys of the `model` section."""

    def make(**changes) -> TransformerLM:
        torch.manual_seed(0)
        config = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "seq_length": 12, "init_std": 0.3}
        model = TransformerLM(ModelConfig(**(config | changes)), 50)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "gate" in name or "streams" in name or "bigrams" in name or "context" in name:
                    parameter.add_(torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(params=TRUNKS)
def any_trunk(request, make_trunk) -> TransformerLM:
    return make_trunk(**TRUNKS[request.param])


@pytest.fixture
def transition() -> Transition:
    """For the trunks of make_trunk, with a slot for nothing that is not zero."""
    torch.manual_seed(0)
    made = Transition(16, 2)
    torch.nn.init.normal_(made.nothing)
    return made
