"""engine/optim/orthogonal.py: polynomials by their singular values, and the best ones by the definition of best."""

import numpy as np
import pytest
import torch

from engine.optim.orthogonal import ADAMW_RMS, Coefficients, coefficients, orthogonal
from model.products import kernel, linear


def applied(polynomials: tuple[Coefficients, ...], x: np.ndarray) -> np.ndarray:
    for a, b, c in polynomials:
        x = a * x + b * x**3 + c * x**5
    return x


@pytest.mark.parametrize("shape", [(3, 48, 48), (1, 96, 24), (2, 24, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_have_equal_singular_values_and_the_size_of_adamws(shape: tuple[int, ...], dtype: torch.dtype):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-6, 1.0, 1e3])[: shape[0], None, None]
    made = orthogonal(matrices, dtype)
    assert made.dtype == torch.float32 and made.shape == shape
    singular = torch.linalg.svdvals(made / (ADAMW_RMS * max(shape[1:]) ** 0.5))
    assert singular.min() > 0.5 and singular.max() < 1.3
    assert made.square().mean().sqrt().item() == pytest.approx(ADAMW_RMS, rel=0.25)
    for one, other in zip(matrices, made, strict=True):  # along the matrix, not against it
        u, _, v = torch.linalg.svd(one, full_matrices=False)
        assert torch.linalg.matrix_norm(u.T @ (other / other.norm()) @ v.T).item() == pytest.approx(1, abs=0.02)


def test_the_best_polynomials_come_nearer_to_one():
    values = np.geomspace(1e-3, 1.0, 3000)
    apart = {
        (name, iterations): np.abs(applied(coefficients(name, iterations), values) - 1).max()
        for name in ("quintic", "polar_express")
        for iterations in (5, 6, 7)
    }
    assert apart["polar_express", 5] < 0.16 < 0.5 < apart["quintic", 5]
    assert apart["polar_express", 6] < 0.01 and apart["polar_express", 7] < 1e-5


def test_no_other_polynomial_is_better_on_its_interval():
    """The first one, on the interval that the cushion leaves."""
    (a, b, c), *_ = coefficients("polar_express", 2)
    best = np.array([a * 1.01, b * 1.01**3, c * 1.01**5])  # without the margin
    x = np.linspace(0.024, 1.0, 4000)
    powers = np.stack([x, x**3, x**5])
    made = best @ powers
    best *= 2 / (made.min() + made.max())  # both ends as far from 1
    error = np.abs(best @ powers - 1).max()
    random = np.random.default_rng(0)
    others = best * (1 + 0.02 * random.standard_normal((2000, 3)))
    assert error < np.abs(others @ powers - 1).max(axis=1).min()


def test_polar_express_makes_matrices_orthogonal():
    torch.manual_seed(0)
    made = orthogonal(torch.randn(2, 40, 96), torch.float32, coefficients("polar_express", 7))
    singular = torch.linalg.svdvals(made / (ADAMW_RMS * 96**0.5))
    torch.testing.assert_close(singular, torch.ones_like(singular), atol=1e-4, rtol=0)


@pytest.mark.skipif(kernel.library() is None, reason="there is no C compiler")
@pytest.mark.parametrize("shape", [(3, 48, 48), (1, 96, 24), (2, 24, 96)])
def test_the_kernel_makes_the_same_matrices(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear, "LEAST_ROWS", 16)
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    with linear.by_kernel():
        made = orthogonal(matrices, torch.float32)
    torch.testing.assert_close(made, orthogonal(matrices, torch.float32), atol=1e-4, rtol=1e-4)
