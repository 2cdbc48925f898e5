"""model/memory/reconstruction.py: a memory token names the tokens of its group, in any order."""

import math

import pytest
import torch
import torch.nn.functional as F

from model import ModelConfig
from model.memory import reconstruction
from model.memory.reconstruction import Reconstruction


@pytest.fixture
def parts() -> tuple[Reconstruction, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    made = Reconstruction(ModelConfig(hidden_size=16, num_heads=2, seq_length=32))
    tokens, targets = torch.randn(3, 4, 16, requires_grad=True), torch.randint(50, (3, 4, 8))
    targets[0, 0] = -100
    targets[2, 3, 5:] = -100
    return made, tokens, targets, torch.randn(50, 16, requires_grad=True)


def test_the_loss_is_that_of_a_plain_computation(parts):
    made, tokens, targets, head = parts
    states = F.rms_norm(tokens @ made.read.weight.T, (16,), eps=1e-6)
    logits = (states @ head.T)[:, :, None].expand(-1, -1, 8, -1)
    expected = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), ignore_index=-100, reduction="sum")
    found = made(tokens, targets, head)
    torch.testing.assert_close(found[0], expected)
    assert found[1] == 3 * 4 * 8 - 8 - 3
    assert torch.equal(made(tokens, targets.flip(2), head)[0].round(decimals=3), found[0].round(decimals=3))


def test_the_head_is_not_trained_by_it(parts):
    made, tokens, targets, head = parts
    made(tokens, targets, head)[0].backward()
    assert head.grad is None and tokens.grad.abs().max() > 0 and made.read.weight.grad.abs().max() > 0
    assert not tokens.grad[0, 0].any()  # a group that is not there


def test_chunks_change_nothing(parts, monkeypatch):
    made, tokens, targets, head = parts
    whole = made(tokens, targets, head)
    (gradient,) = torch.autograd.grad(whole[0], tokens)
    monkeypatch.setattr(reconstruction, "chunk_tokens", lambda head: 3)
    parts_of_it = made(tokens, targets, head)
    torch.testing.assert_close(parts_of_it, whole)
    torch.testing.assert_close(torch.autograd.grad(parts_of_it[0], tokens)[0], gradient)


def test_it_learns_the_bag_of_words():
    """The least loss of a group is the entropy of its tokens."""
    torch.manual_seed(0)
    made = Reconstruction(ModelConfig(hidden_size=16, num_heads=2, seq_length=32))
    tokens = torch.randn(1, 4, 16)
    targets, head = torch.tensor([[[1, 1, 2, 3], [4, 4, 4, 4], [5, 6, 7, 8], [9, 9, 8, 8]]]), 2 * torch.randn(10, 16)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(300):
        total, number = made(tokens, targets, head)
        optimizer.zero_grad()
        (total / number).backward()
        optimizer.step()
    least = (1.5 * math.log(2) + 0 + math.log(4) + math.log(2)) / 4
    assert least <= float((total / number).detach()) < least + 0.1
