import pytest
import torch

from engine.optim.expert_balance import ExpertBalance
from model import ModelConfig, TransformerLM
from model.experts import sparse_layers


@pytest.fixture
def model() -> TransformerLM:
    return TransformerLM(ModelConfig(hidden_size=16, num_layers=2, num_heads=2, seq_length=12, num_experts=4), 50)


def biases(model: TransformerLM) -> list[list[float]]:
    return [layer.router.expert_bias.tolist() for layer in sparse_layers(model.blocks)]


def test_biases_move_against_the_deviation_of_the_load(model: TransformerLM):
    balance = ExpertBalance(sparse_layers(model.blocks), 1e-3)
    violation = balance.after_step(torch.tensor([[40, 20, 20, 0], [7, 7, 7, 7]]))
    assert biases(model) == [pytest.approx([-1e-3, 0, 0, 1e-3]), [0, 0, 0, 0]]
    assert violation.tolist() == [1.0, 0.0]


def test_a_block_may_leave_them_unchanged(model: TransformerLM):
    balance = ExpertBalance(sparse_layers(model.blocks), 1e-3)
    balance.after_step(torch.tensor([[40, 20, 20, 0], [9, 7, 7, 7]]))
    before = biases(model)
    with balance.unchanged():
        balance.after_step(torch.tensor([[0, 0, 0, 80], [9, 7, 7, 7]]))
        assert biases(model) != before
    assert biases(model) == before


def test_they_make_loads_even(model: TransformerLM):
    """Tokens that all prefer two experts are spread within some hundred steps."""
    torch.manual_seed(0)
    layer = sparse_layers(model.blocks)[0]
    with torch.no_grad():
        layer.router.weight.normal_(std=0.5)
        layer.router.weight[:2] += 0.3
    balance, x = ExpertBalance([layer], 5e-3), torch.randn(2000, 16) * 0.3 + 0.5
    first = last = None
    for _ in range(300):
        last = balance.after_step(layer.router(x).load[None]).item()
        first = last if first is None else first
    assert first > 0.9 and last < 0.1
