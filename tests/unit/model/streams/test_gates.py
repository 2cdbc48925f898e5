import torch

from model.attention import CausalSelfAttention
from model.streams.gates import HeadGate, gate


def test_a_gate_is_one_at_first_and_between_zero_and_two():
    made, x = HeadGate(16, 4), torch.randn(2, 5, 16)
    assert torch.equal(made(x), torch.ones(2, 4, 5, 1))
    with torch.no_grad():
        made.weight.normal_(std=3)
    factors = made(x)
    assert factors.min() >= 0 and factors.max() <= 2 and factors.std() > 0.3
    assert torch.equal(factors, gate(x, made.weight))


def test_a_closed_head_adds_nothing():
    torch.manual_seed(0)
    attention = CausalSelfAttention(16, 4, 0.0, layer=0, bias=False)
    attention.output_gate = HeadGate(16, 4)
    x = torch.randn(1, 6, 16)
    x[..., 0] = 1
    with torch.no_grad():
        attention.output_gate.weight[1, 0] = -1000.0
        gated = attention(x)
        attention.output_gate = None
        attention.out_proj.weight[:, 4:8] = 0  # what the closed head would have passed on
        torch.testing.assert_close(gated, attention(x))
