"""engine/run/step.py; whole steps are in test_stability.py and tests/integration/test_golden_loss.py."""

import math

import torch

from engine.run.step import _to_cpu


def test_one_transfer_keeps_every_bit():
    whole = torch.tensor([[2**62, -1], [0, 7]])
    broken = torch.tensor([math.nan, math.inf, -0.0, 1e-310], dtype=torch.float64)
    first, second = _to_cpu(whole, broken)
    assert torch.equal(first, whole) and torch.equal(second.view(torch.int64), broken.view(torch.int64))
