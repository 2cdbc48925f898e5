"""engine/optim/soap.py against Adam in a basis that is known, and against its own transpose."""

import pytest
import torch

from engine.optim import soap

ROWS, SIDE = 12, 5


def start(rows: int = ROWS, columns: int = SIDE, number: int = 2) -> list[torch.Tensor]:
    return [torch.zeros(number, rows, columns) for _ in range(3)]


def test_gradients_along_known_axes_are_scaled_as_adam_scales_them():
    """Rotated gradients whose columns have sizes far apart: what comes out has equal columns in that basis."""
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(SIDE, SIDE)).Q
    sizes = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1])
    state = start(400, number=1)
    for step in range(1, 42):
        gradient = (torch.randn(1, 400, SIDE) * sizes) @ rotation.T
        update, *state = soap.preconditioned(gradient, gradient, *state, step)
    found = update @ rotation
    assert found.std(dim=1).max() / found.std(dim=1).min() < 1.5  # of 100 before
    basis = state[2].reshape(1, -1)[:, : SIDE * SIDE].view(SIDE, SIDE)
    torch.testing.assert_close(basis.T @ basis, torch.eye(SIDE), atol=1e-5, rtol=0)
    assert (basis.T @ rotation).abs().max(dim=0).values.min() > 0.95  # the same axes, the largest first
    assert (basis.T @ rotation).abs().argmax(dim=0).tolist() == list(range(SIDE))


def test_the_first_step_has_the_eigenvectors_of_its_gradient():
    torch.manual_seed(0)
    gradient, update = torch.randn(2, 2, ROWS, SIDE)
    made, squares, gram, basis = soap.preconditioned(update, gradient, *start(), 1)
    for number in range(2):
        product = gradient[number].T @ gradient[number] * (1 - soap.MEMORY)
        kept = gram[number].flatten()[: SIDE * SIDE].view(SIDE, SIDE)
        torch.testing.assert_close(kept, product)
        vectors = basis[number].flatten()[: SIDE * SIDE].view(SIDE, SIDE)
        turned = vectors.T @ product @ vectors
        torch.testing.assert_close(turned, turned.diagonal().diag(), atol=1e-4, rtol=0)
        assert (turned.diagonal().diff() < 0).all()
        expected = update[number] @ vectors / squares[number].sqrt() @ vectors.T
        torch.testing.assert_close(made[number], expected)
        torch.testing.assert_close(squares[number], (gradient[number] @ vectors).square() * (1 - soap.MEMORY))
    assert not gram.flatten(1)[:, SIDE * SIDE :].any() and not basis.flatten(1)[:, SIDE * SIDE :].any()


@pytest.mark.parametrize("steps", [1, 12])
def test_a_wide_matrix_is_a_tall_one_that_is_turned(steps: int):
    torch.manual_seed(0)
    tall, wide = start(), start(SIDE, ROWS)
    for step in range(1, steps + 1):
        gradient, update = torch.randn(2, 2, ROWS, SIDE)
        made, *tall = soap.preconditioned(update, gradient, *tall, step)
        turned, *wide = soap.preconditioned(update.mT, gradient.mT, *wide, step)
    torch.testing.assert_close(turned.mT, made)
    torch.testing.assert_close(wide[1].flatten(1), tall[1].flatten(1))


def test_a_basis_is_refined_now_and_then_only():
    torch.manual_seed(0)
    state, bases = start(), []
    for step in range(1, 2 * soap.REFRESH_STEPS + 2):
        gradient = torch.randn(2, ROWS, SIDE)
        _, *state = soap.preconditioned(gradient, gradient, *state, step)
        bases.append(state[2])
    changed = [step for step in range(2, len(bases) + 1) if not torch.equal(bases[step - 2], bases[step - 1])]
    assert changed == [soap.REFRESH_STEPS + 1, 2 * soap.REFRESH_STEPS + 1]


def test_a_run_that_had_none_begins_with_adam():
    torch.manual_seed(0)
    gradient = torch.randn(2, ROWS, SIDE)
    made, _, _, basis = soap.preconditioned(gradient, gradient, *start(), 7)
    torch.testing.assert_close(made, gradient.sign() / (1 - soap.MEMORY) ** 0.5)
    assert torch.equal(basis[0].flatten()[: SIDE * SIDE].view(SIDE, SIDE), torch.eye(SIDE))
    assert not soap.preconditioned(*(torch.zeros(2, ROWS, SIDE),) * 2, *start(), 7)[0].any()
