import pytest
import torch
import torch.nn.functional as F

from model.block import MLP
from model.experts import activate


@pytest.mark.parametrize("kind", ["gelu", "squared_relu", "swiglu"])
def test_the_activation_is_the_dense_mlps(kind: str):
    x = torch.randn(3, 8)
    assert torch.equal(activate(x, kind), MLP(4, kind).activate(x))


def test_swiglu_gates_the_second_half_by_the_first():
    gate, value = torch.randn(2, 3, 4)
    assert torch.equal(activate(torch.cat([gate, value], -1), "swiglu"), F.silu(gate) * value)
