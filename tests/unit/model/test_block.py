"""model/block.py: each MLP against its definition, and initial weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from model import ModelConfig, TransformerLM
from model.block import MLP


@pytest.mark.parametrize("kind", ["gelu", "squared_relu", "swiglu"])
def test_each_mlp_equals_its_definition(kind):
    torch.manual_seed(0)
    mlp, x = MLP(96, kind), torch.randn(5, 96)
    up = F.linear(x, mlp.up.weight, mlp.up.bias)
    if kind == "gelu":
        inner = F.gelu(up)
    elif kind == "squared_relu":
        inner = up * up * (up > 0)
    else:
        inner = up[:, :256] * torch.sigmoid(up[:, :256]) * up[:, 256:]
    torch.testing.assert_close(mlp(x), F.linear(inner, mlp.down.weight, mlp.down.bias))
    assert sum(p.numel() for p in mlp.parameters() if p.ndim == 2) == 8 * 96**2


def test_initialisation_statistics():
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(num_layers=3, hidden_size=128, seq_length=128, init_std=0.03), 1000)
    residual = 0.03 / math.sqrt(2 * 3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            expected = residual if name.endswith(("out_proj.weight", "down.weight")) else 0.03
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.03 * expected, name
    assert model(torch.arange(100)[None], torch.arange(1, 101)[None]).loss_sum.item() / 100 == pytest.approx(
        math.log(1000), abs=0.2
    )
