import pytest
import torch

from model.experts.balance import balance_loss, max_violation, z_loss
from model.experts.routing import Router, Routing


def routing(logits: torch.Tensor) -> Routing:
    indices = logits.topk(1).indices
    load = torch.bincount(indices.flatten(), minlength=logits.shape[1])
    return Routing(indices, torch.ones_like(indices, dtype=torch.float32), logits, load)


def test_the_balance_loss_is_least_for_even_loads():
    even, uneven = 4 * torch.eye(4).repeat(5, 1), 4 * torch.eye(4)[:1].repeat(20, 1)
    assert balance_loss(routing(even)).item() == pytest.approx(1.0)
    assert balance_loss(routing(uneven)) > 1.3


def test_its_gradient_takes_from_the_fullest_expert():
    logits = (4 * torch.eye(4)[[0, 0, 0, 1]]).requires_grad_()
    balance_loss(routing(logits)).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 3] < 0).all()


def test_the_z_loss_is_the_squared_log_sum_exp():
    logits = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    expected = (torch.tensor(2.0).log() ** 2 + (3 + torch.tensor(2.0).log()) ** 2) / 2
    torch.testing.assert_close(z_loss(routing(logits)), expected)


def test_max_violation_is_relative_to_the_mean():
    load = torch.tensor([[10, 10, 10, 10], [25, 5, 5, 5], [0, 0, 0, 0]])
    assert max_violation(load).tolist() == pytest.approx([0.0, 1.5, -1.0])


def test_a_router_of_even_scores_has_a_balance_loss_near_one():
    torch.manual_seed(0)
    router = Router(32, 8, 2)
    torch.nn.init.normal_(router.weight, std=0.02)
    assert balance_loss(router(torch.randn(4096, 32))).item() == pytest.approx(1.0, abs=0.05)
