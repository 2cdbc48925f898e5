"""model/products/timing.py: a gain is measured, and a kernel that makes mistakes has none."""

import pytest
import torch

from model.products import kernel, timing

pytestmark = pytest.mark.skipif(kernel.library() is None, reason="there is no C compiler")


def test_a_gain_is_measured_without_a_random_number():
    before = torch.get_rng_state()
    assert 0.01 < timing.gain(64) < 100
    assert torch.equal(before, torch.get_rng_state())


def test_a_kernel_that_is_wrong_has_no_gain(monkeypatch):
    monkeypatch.setattr(kernel, "multiply", lambda a, b, out: torch.mm(a, b, out=out).mul_(1.001))
    assert timing.gain(16) == 0


def test_a_kernel_that_makes_nan_has_no_gain(monkeypatch):
    monkeypatch.setattr(kernel, "multiply", lambda a, b, out: out.fill_(torch.nan))
    assert timing.gain(16) == 0
