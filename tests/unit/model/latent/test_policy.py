"""model/latent/policy.py against torch's own KL in float64."""

import pytest
import torch
import torch.nn.functional as F

from model import loss
from model.latent import policy
from model.latent.policy import Head, linear_kl


@pytest.fixture
def many_chunks(monkeypatch):
    monkeypatch.setattr(loss, "CPU_CHUNK_BYTES", 4 * 16 * 4 * 128)  # 16 tokens of 128 rows: the last is a part


def problem(dtype=torch.float32, vocab_size=100, rows=128, tokens=70, depth=3):
    torch.manual_seed(3)
    hidden = torch.randn(tokens, 16, dtype=dtype, requires_grad=True)
    predicted = torch.randn(depth, tokens, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(rows, 16, dtype=dtype, requires_grad=True)
    valid = torch.rand(depth, tokens) < 0.8
    return predicted, hidden, weight, vocab_size, valid


def reference(predicted, hidden, weight, vocab_size, valid):
    """KLs and the gradient of their sum, by plain means in float64."""
    predicted, hidden, weight = (tensor.detach().double() for tensor in (predicted, hidden, weight[:vocab_size]))
    predicted.requires_grad_()
    teacher, student = (F.linear(states, weight).log_softmax(-1) for states in (hidden, predicted))
    kl = F.kl_div(student, teacher.expand_as(student), reduction="none", log_target=True).sum(-1) * valid
    kl.sum().backward()
    return kl.detach(), predicted.grad


@pytest.mark.parametrize("vocab_size", [100, 128])
def test_values_and_gradient_equal_float64(many_chunks, vocab_size):
    predicted, hidden, weight, _, valid = problem()
    kl_sum, kl = linear_kl(predicted, hidden, Head(weight, vocab_size), valid)
    (0.25 * kl_sum).backward()
    expected, gradient = reference(predicted, hidden, weight, vocab_size, valid)
    torch.testing.assert_close(kl, expected.float(), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(kl_sum, expected.sum().float())
    torch.testing.assert_close(predicted.grad, 0.25 * gradient.float(), atol=2e-5, rtol=2e-5)
    assert not kl.requires_grad and not kl[~valid].any() and not predicted.grad[~valid].any()


def test_neither_the_teacher_nor_the_head_gets_a_gradient():
    predicted, hidden, weight, vocab_size, valid = problem()
    linear_kl(predicted, hidden, Head(weight, vocab_size), valid)[0].backward()
    assert hidden.grad is None and weight.grad is None and predicted.grad.any()


def test_a_perfect_prediction_costs_nothing():
    _, hidden, weight, vocab_size, valid = problem()
    kl_sum, kl = linear_kl(hidden.expand(3, -1, -1), hidden, Head(weight, vocab_size), valid)
    assert kl.abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(kl_sum, hidden)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_autocast(many_chunks, compiled):
    predicted, hidden, weight, vocab_size, valid = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kl_sum, kl = linear_kl(predicted, hidden, Head(weight, vocab_size, compiled), valid)
    kl_sum.backward()
    expected, gradient = reference(predicted, hidden, weight, vocab_size, valid)
    assert kl.dtype == predicted.grad.dtype == torch.float32
    assert abs(kl_sum.item() / expected.sum().item() - 1) < 5e-3
    assert (predicted.grad - gradient).norm() / gradient.norm() < 0.02
    assert (kl - expected).abs().max() > 1e-4  # it did run in bf16


def test_without_gradients_none_are_computed():
    predicted, hidden, weight, vocab_size, valid = problem()
    with torch.no_grad():
        assert not linear_kl(predicted, hidden, Head(weight, vocab_size), valid)[0].requires_grad
    assert policy._fused(predicted, hidden, weight, vocab_size, valid, torch.float32, False, False)[1].numel() == 0


def test_gradient_checks_and_operator_contract():
    predicted, hidden, weight, vocab_size, valid = problem(torch.float64, vocab_size=20, rows=24, tokens=6, depth=2)
    assert torch.autograd.gradcheck(lambda p: linear_kl(p, hidden, Head(weight, vocab_size), valid)[0], (predicted,))
    torch.library.opcheck(
        policy._fused,
        (predicted, hidden.detach(), weight.detach(), vocab_size, valid, torch.float64, True, False),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
