"""Orthogonalisation of momentum by polynomials of matrix products: the nearest matrix with equal singular values.

Each iteration applies an odd polynomial a x + b x^3 + c x^5 to all singular values at once:
a X + (b X X^T + c (X X^T)^2) X. Which coefficients are best depends on the singular values that are left:

- `quintic`: Jordan's Newton-Schulz coefficients (2024), the same in each iteration; they end within 0.7 to 1.2.
- `polar_express`: the polynomial of each iteration is the best one for the interval in which the singular values lie by
  then (Amsel et al., arXiv 2505.16932): they end near 1. Computed here by Remez' exchange, not tabulated.
"""

import functools
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.products.linear import kernel_multiplies, products

Coefficients = tuple[float, float, float]
Polynomial = Literal["quintic", "polar_express"]
ADAMW_RMS = 0.2  # RMS of AdamW's updates at a learning rate of 1
_JORDAN: Coefficients = (3.4445, -4.7750, 2.0315)
_SMALLEST = 1e-3  # singular values below it, of a largest of 1, are not brought to 1
_CUSHION = 0.024  # of an interval's end: a polynomial for smaller values would be too steep for bf16
_MARGIN = 1.01  # rounding may lift singular values this far above 1


def orthogonal(matrices: Tensor, dtype: torch.dtype, polynomials: tuple[Coefficients, ...] | None = None) -> Tensor:
    """(N, R, C) -> (N, R, C) fp32: about the nearest matrices with orthogonal rows or columns, times
    ADAMW_RMS * sqrt(max(R, C)); by `polynomials`, one an iteration (None: five of Jordan's)."""
    rows, columns = matrices.shape[1:]
    x = (matrices.mT if rows > columns else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    by_kernel = kernel_multiplies(x, x.shape[2])
    for first, second, third in polynomials or coefficients("quintic", 5):
        if by_kernel:
            gram = products(x, x.mT)
            x = products(products(gram, gram).mul_(third).add_(gram, alpha=second), x).add_(x, alpha=first)
            continue
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    x = x.float() * (ADAMW_RMS * math.sqrt(max(rows, columns)))
    return x.mT if rows > columns else x


@functools.cache
def coefficients(polynomial: Polynomial, iterations: int) -> tuple[Coefficients, ...]:
    """(a, b, c) of each iteration."""
    if polynomial == "quintic":
        return (_JORDAN,) * iterations
    found, low, high = [], _SMALLEST, 1.0
    for number in range(iterations):
        best = _best(max(low, _CUSHION * high), high)
        # Both ends as far from 1: what the cushion left out has not come as near.
        centre = 2 / (_value(best, low) + _value(best, high))
        a, b, c = (centre * each for each in best)
        low, high = _value((a, b, c), low), 2 - _value((a, b, c), low)
        margin = _MARGIN if number < iterations - 1 else 1.0
        found.append((a / margin, b / margin**3, c / margin**5))
    return tuple(found)


def _value(polynomial: Coefficients, x: float) -> float:
    a, b, c = polynomial
    return a * x + b * x**3 + c * x**5


def _best(low: float, high: float) -> Coefficients:
    """The odd polynomial of degree 5 that is nearest to 1 on [low, high]: its error has equal size and alternating
    signs at four points, the ends and two within."""
    if low > (1 - 1e-5) * high:  # its limit, where the system below is singular
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    a = b = c = 0.0
    points = np.array([low, (3 * low + high) / 4, (low + 3 * high) / 4, high])
    for _ in range(50):
        system = np.stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        # The extremes within are the zeros of a + 3 b x^2 + 5 c x^4.
        root = math.sqrt(9 * b * b - 20 * a * c)
        within = np.sqrt(sorted([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)]))
        moved = np.abs(within - points[1:3]).max()
        points[1:3] = within
        if moved < 1e-12:
            break
    return float(a), float(b), float(c)
