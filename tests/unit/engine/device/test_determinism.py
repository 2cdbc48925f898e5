"""Deterministic kernels within a block alone, and seeds of dropout that belong to a batch and a rank."""

import os

import pytest
import torch

from engine.device.determinism import CUBLAS_WORKSPACE, deterministic, seed_batch


def test_dropout_belongs_to_a_batch_and_a_rank():
    def mask(*which: int) -> torch.Tensor:
        seed_batch(*which)
        return torch.nn.functional.dropout(torch.ones(1000))

    assert torch.equal(mask(1, 2, 3), mask(1, 2, 3))
    assert not any(torch.equal(mask(1, 2, 3), mask(*other)) for other in ((2, 2, 3), (1, 3, 3), (1, 2, 0), (1, 3, 2)))


def test_deterministic_settings_are_put_back_after_an_error(monkeypatch):
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with pytest.raises(KeyError), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and cudnn.deterministic and not cudnn.benchmark
        raise KeyError
    assert (cudnn.deterministic, cudnn.benchmark) == before and not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("enabled", [False, True])
def test_kernels_are_deterministic_if_asked(monkeypatch, enabled: bool):
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    before = torch.get_deterministic_debug_mode()
    with deterministic(enabled):
        assert torch.are_deterministic_algorithms_enabled() is enabled
        assert (CUBLAS_WORKSPACE in os.environ) is enabled
    assert torch.get_deterministic_debug_mode() == before and CUBLAS_WORKSPACE not in os.environ


def test_a_mode_that_only_warned_is_put_back():
    torch.set_deterministic_debug_mode("warn")
    try:
        with deterministic(True):
            assert torch.get_deterministic_debug_mode() == 2
        assert torch.get_deterministic_debug_mode() == 1
    finally:
        torch.set_deterministic_debug_mode("default")


def test_seeds_are_the_same_everywhere():
    """Written down once: a resumed run must draw what the run before it would have drawn."""
    seed_batch(1234, 5, 0)
    assert torch.initial_seed() == 12658202492999529701
