"""Products of groups of rows with a matrix each: rows that are sorted by expert with the experts' weights.

On a GPU in bf16 this is torch's grouped product, which never waits for the device. Elsewhere it is a loop over the
experts within an opaque operator, so that torch.compile does not break the graph at group sizes that it cannot know.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

# CUDA graphs cannot hold the loop, which reads the sizes of groups on the CPU.
_TAGS = (torch.Tag.cudagraph_unsafe,)


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows x (M, in), weights (E, out, in) of E groups, ends (E,) int32: where each group ends -> (M, out)."""
    if has_grouped_product(x, weight):
        return F.grouped_mm(x, weight.mT, offs=ends)
    return looped_linear(x, weight, ends)


def has_grouped_product(x: Tensor, weight: Tensor) -> bool:
    """Whether torch has a grouped product for tensors like these that is more than a loop."""
    aligned = all(size % 8 == 0 for size in weight.shape[1:])
    return x.is_cuda and x.dtype == torch.bfloat16 and aligned and hasattr(F, "grouped_mm")


@torch.library.custom_op("forethought::grouped_linear", mutates_args=(), tags=_TAGS)
def looped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """grouped_linear by a product for each group that has rows."""
    out = x.new_empty(len(x), weight.shape[1])
    with torch.autocast(x.device.type, enabled=False):
        for expert, start, end in _groups(ends):
            torch.mm(x[start:end], weight[expert].T, out=out[start:end])
    return out


@torch.library.custom_op("forethought::grouped_outer", mutates_args=(), tags=_TAGS)
def _outer(gradient: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """The gradient (E, out, in) of the weights, from that of the output (M, out) and rows (M, in)."""
    out = x.new_zeros(len(ends), gradient.shape[1], x.shape[1])
    with torch.autocast(x.device.type, enabled=False):
        for expert, start, end in _groups(ends):
            torch.mm(gradient[start:end].T, x[start:end], out=out[expert])
    return out


def _groups(ends: Tensor) -> list[tuple[int, int, int]]:
    """(number, start, end) of the groups that have rows."""
    bounds = [0, *ends.tolist()]
    return [(n, start, end) for n, (start, end) in enumerate(itertools.pairwise(bounds)) if end > start]


@looped_linear.register_fake
def _(x, weight, ends):
    return x.new_empty(x.shape[0], weight.shape[1])


@_outer.register_fake
def _(gradient, x, ends):
    return x.new_empty(ends.shape[0], gradient.shape[1], x.shape[1])


def _keep(ctx, inputs, output):
    x, weight, ends = inputs
    ctx.save_for_backward(x, weight, ends)


def _gradients(ctx, gradient):
    x, weight, ends = ctx.saved_tensors
    gradient = gradient.contiguous()
    of_x = looped_linear(gradient, weight.mT, ends) if ctx.needs_input_grad[0] else None
    of_weight = _outer(gradient, x, ends) if ctx.needs_input_grad[1] else None
    return of_x, of_weight, None


looped_linear.register_autograd(_gradients, setup_context=_keep)
