"""How much faster the kernel is than torch on this machine, in the products of a model of some width."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from . import kernel

ROUNDS = 5
MOST_ROWS, LEAST_ROWS = 2048, 256
WORK = 2**29  # multiplications of one product: some milliseconds
TOLERANCE = 1e-5  # of the largest number of a product


def gain(width: int) -> float:
    """Seconds of torch over those of the kernel for the three products of a layer (width, 4 width): of its output and
    of both gradients. The best of some rounds in turns; 0 where the kernel makes a mistake.

    Draws no number from torch's global generator.
    """
    inner = 4 * width
    rows = max(LEAST_ROWS, min(MOST_ROWS, WORK // (width * inner)))
    generator = torch.Generator().manual_seed(0)
    x, weight, gradient = (
        torch.randn(shape, generator=generator) for shape in ((rows, width), (inner, width), (rows, inner))
    )
    seconds = [0.0, 0.0]
    for a, b in ((x, weight.T), (gradient, weight), (gradient.T, x)):
        by_torch, by_kernel = (torch.empty(len(a), b.shape[1]) for _ in range(2))
        ways = (_call(torch.mm, a, b, by_torch), _call(kernel.multiply, a, b, by_kernel))
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for way, taken in zip(ways, times, strict=True):
                begin = time.perf_counter()
                way()
                taken.append(time.perf_counter() - begin)
        if not (by_torch - by_kernel).abs().max() <= TOLERANCE * by_torch.abs().max():
            return 0.0
        seconds = [total + min(taken) for total, taken in zip(seconds, times, strict=True)]
    return seconds[0] / seconds[1]


def _call(function: Callable, a: Tensor, b: Tensor, out: Tensor) -> Callable[[], Tensor]:
    return lambda: function(a, b, out=out)
