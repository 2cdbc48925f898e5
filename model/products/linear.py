"""Linear layers and other products of matrices, multiplied by torch or by the kernel.

torch's library multiplies the shapes of a small model at two thirds of the rate of its best ones on processors without
bf16 arithmetic (benchmarks/LOG.md). A run that multiplies fp32 there may turn the kernel on; it is off otherwise, and
then everything here is torch's own function.

Notable here
- The kernel is an opaque operator (torch.library) with its gradients, so that torch.compile does not break the graph.
- Few rows are left to torch: the kernel copies the weights at each product.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernel

LEAST_ROWS = 256
_by_kernel = False


@contextmanager
def by_kernel(enabled: bool = True) -> Iterator[None]:
    """Multiply by the kernel, or by torch, from here to the end of the context."""
    before = _by_kernel
    use_kernel(enabled)
    try:
        yield
    finally:
        use_kernel(before)


def use_kernel(enabled: bool) -> None:
    """Multiply by the kernel from here on, or by torch. Raises RuntimeError where there is no kernel."""
    global _by_kernel
    if enabled and kernel.library() is None:
        raise RuntimeError("There is no C compiler for the kernel of matrix products.")
    _by_kernel = enabled


def kernel_multiplies(x: Tensor, rows: int) -> bool:
    """Whether the kernel multiplies matrices like x, of which one has so many rows."""
    if not _by_kernel or rows < LEAST_ROWS or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    return not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""
    if not kernel_multiplies(x, x.numel() // x.shape[-1]):
        return F.linear(x, weight, bias)
    y = _linear(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


class Linear(nn.Linear):
    """nn.Linear, multiplied as `linear` does."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def product(a: Tensor, b: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """a (m, k) times b (k, n), without gradients; written, or with `add` added, into out (m, n) where that is given."""
    if kernel_multiplies(a, max(len(a), a.shape[1])) and a.dtype == b.dtype:
        return _multiply(a, b, a.new_empty(len(a), b.shape[1]) if out is None else out, add)
    if add:
        assert out is not None
        return out.addmm_(a, b)
    return torch.mm(a, b, out=out)


def products(a: Tensor, b: Tensor) -> Tensor:
    """a (N, m, k) times b (N, k, n) by the kernel, without gradients -> (N, m, n)."""
    out = a.new_empty(len(a), a.shape[1], b.shape[2])
    for number in range(len(a)):
        _multiply(a[number], b[number], out[number])
    return out


def _multiply(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> Tensor:
    a, b = (each if 1 in each.stride() else each.contiguous() for each in (a, b))
    return kernel.multiply(a, b, out, add)


@torch.library.custom_op("forethought::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, in), weight (out, in) -> (N, out)."""
    return _multiply(x, weight.t(), x.new_empty(len(x), len(weight)))


@torch.library.custom_op("forethought::linear_gradients", mutates_args=())
def _gradients(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x (N, in) and weight (out, in), from that of the output (N, out)."""
    of_x = _multiply(gradient, weight, x.new_empty(x.shape))
    return of_x, _multiply(gradient.t(), x, weight.new_empty(weight.shape))


@_linear.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], weight.shape[0])


@_gradients.register_fake
def _(gradient, x, weight):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    return _gradients(gradient, *ctx.saved_tensors)


_linear.register_autograd(_backward, setup_context=_keep)
