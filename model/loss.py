"""Next-token cross-entropy straight from hidden states, without ever holding the logits of a whole batch.

At 128 x 256 tokens and 50,304 vocabulary rows the fp32 logits alone are 6.6 GB, and a plain loss keeps them (and their
gradient) from forward to backward. Here tokens are processed in chunks. While the logits of a chunk are in memory,
their softmax is turned into the gradients of the hidden states and of the head, so only (N, D) and (V, D) stay;
backward scales both by the upstream scalar. (The idea: Cut Cross-Entropy, arXiv 2411.09009, and Liger kernels,
2410.10989.)

Notable here
- Matrix products run in autocast's dtype. Log-sum-exp and the loss are in fp32, and so is the sum over chunks of the
  head's gradient, each of whose terms is a product in that dtype.
- It is an opaque operator (torch.library), not an autograd.Function: torch.compile neither unrolls the chunks nor
  breaks the graph at it.
- Logits may be capped (Gemma 2, arXiv 2408.00118), and the squared log-sum-exp of each token may be added to the loss
  (z-loss: PaLM, arXiv 2204.02311). Neither costs anything where it is off.
- On a GPU a Triton kernel computes NLLs and gradients from the logits of a chunk (loss_kernel.py). Elsewhere, in
  fp64, and with a cap or a z-loss, torch's operators do, compiled where the model is: the opaque operator hides them
  from the model's compilation.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import loss_kernel
from .products.linear import kernel_multiplies, product

IGNORE_INDEX = -100
# Bytes of a chunk's logits in fp32. Each chunk adds to the gradient of the whole head, so chunks are few, and on a GPU
# large enough to fill it (both measured: benchmarks/LOG.md).
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 128 * 2**20, 4 * 2**30


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    token_weights: Tensor | None = None,
    softcap: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(hidden @ weight.T + bias) against labels.

    hidden (N, D), weight (V, D), bias (V,) or None: a constant, -inf excludes a row; labels (N,) int64, -100 = ignored;
    token_weights (N,) or None: constants by which the NLLs are multiplied in the sum. softcap: logits x become
    softcap * tanh(x / softcap), before the bias. z_loss: z_loss * log-sum-exp^2 of each token is added to its NLL in
    the sum. 0 turns either off.
    Returns (loss_sum, token_nll): the scalar fp32 (weighted) sum of NLLs in nats, differentiable with respect to hidden
    and weight, and the fp32 NLLs (N,), detached, never weighted, without the z-loss, 0 where ignored.
    """
    constants = [tensor for tensor in (bias, token_weights) if tensor is not None]
    assert not any(tensor.requires_grad for tensor in constants), "constants here; their gradients are not computed"
    dtype = matmul_dtype(hidden)
    with_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    compiled = torch.compiler.is_compiling()
    loss_sum, token_nll, _, _ = _fused(
        hidden, weight, bias, labels, token_weights, dtype, with_gradients, compiled, softcap, z_loss
    )
    return loss_sum, token_nll.detach()


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on, else that of `hidden`; inside an opaque operator autocast does not act."""
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


def chunk_tokens(weight: Tensor) -> int:
    """The tokens of the largest chunk whose logits over the head `weight` (V, D) may be held."""
    chunk_bytes = CPU_CHUNK_BYTES if weight.device.type == "cpu" else GPU_CHUNK_BYTES
    return max(1, chunk_bytes // (4 * len(weight)))


def even_chunk(tokens: int, most: int) -> int:
    """Tokens of a chunk, at most `most`, so that all chunks have the same size: a small last chunk would not fill a
    GPU, and each size is compiled separately. Where that takes over 1.5 times the chunks, the last one is smaller."""
    fewest = max(1, math.ceil(tokens / most))
    chunks = next((n for n in range(fewest, fewest + fewest // 2 + 1) if tokens % n == 0), fewest)
    return max(1, math.ceil(tokens / chunks))


@torch.library.custom_op("forethought::linear_cross_entropy", mutates_args=())
def _fused(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    token_weights: Tensor | None,
    dtype: torch.dtype,
    with_gradients: bool,
    compiled: bool,
    softcap: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss_sum, token_nll, d loss_sum / d hidden, d loss_sum / d weight); without gradients the last two are empty."""
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    token_nll = hidden.new_zeros(len(labels), dtype=accumulate)
    penalty = torch.zeros_like(token_nll) if z_loss else None
    grad_hidden = torch.empty_like(hidden) if with_gradients else hidden.new_empty(0)
    grad_weight = torch.zeros_like(weight, dtype=accumulate) if with_gradients else weight.new_empty(0)
    chunk = even_chunk(len(labels), chunk_tokens(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        low_hidden, low_weight = hidden.to(dtype), weight.to(dtype)
        low_bias = None if bias is None else bias.to(dtype)
        for start in range(0, len(labels), chunk):
            rows = slice(start, start + chunk)
            weights = None if token_weights is None else token_weights[rows]
            if softcap or z_loss:
                logits = _logits(low_hidden[rows], low_weight, None)
                compute = _compiled_adjusted() if compiled else _adjusted
                token_nll[rows], added, grad_logits = compute(
                    logits, bias, labels[rows], weights, accumulate, with_gradients, softcap, z_loss
                )
                if penalty is not None:
                    penalty[rows] = added
            else:
                logits = _logits(low_hidden[rows], low_weight, low_bias)
                grad_logits = _chunk_nll(logits, labels[rows], weights, token_nll[rows], with_gradients, compiled)
            if grad_logits is not None:
                grad_hidden[rows] = product(grad_logits, low_weight)
                if dtype == accumulate:
                    product(grad_logits.T, low_hidden[rows], out=grad_weight, add=True)
                else:
                    grad_weight += grad_logits.T @ low_hidden[rows]
    weighted = token_nll if penalty is None else token_nll + penalty
    weighted = weighted if token_weights is None else weighted * token_weights
    return weighted.sum(), token_nll, grad_hidden, grad_weight.to(weight.dtype)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden (N, D), weight (V, D), bias (V,) or None -> (N, V)."""
    if not kernel_multiplies(hidden, len(hidden)):
        return F.linear(hidden, weight, bias)
    logits = product(hidden, weight.T)
    return logits if bias is None else logits.add_(bias)


def _chunk_nll(
    logits: Tensor,
    labels: Tensor,
    token_weights: Tensor | None,
    token_nll: Tensor,
    with_gradients: bool,
    compiled: bool,
) -> Tensor | None:
    """Fill token_nll (N,) from the logits (N, V) of a chunk, which are overwritten; with_gradients, return
    d loss_sum / d logits in their dtype."""
    if token_nll.dtype == torch.float32 and loss_kernel.works_on(logits.device):
        loss_kernel.nll_and_gradient(logits, labels, token_weights, token_nll, IGNORE_INDEX, with_gradients)
        return logits if with_gradients else None
    # in fp32 compiling would be no faster
    compute = _compiled_nll_and_gradient() if compiled and logits.dtype != token_nll.dtype else _nll_and_gradient
    nll, gradient = compute(logits, labels, token_weights, token_nll.dtype, with_gradients)
    token_nll.copy_(nll)
    return gradient


def _nll_and_gradient(
    logits: Tensor, labels: Tensor, token_weights: Tensor | None, accumulate: torch.dtype, with_gradients: bool
) -> tuple[Tensor, Tensor | None]:
    """What _chunk_nll fills in and returns, by torch's operators."""
    dtype, logits = logits.dtype, logits.to(accumulate)
    target = labels[:, None]
    ignored = target == IGNORE_INDEX
    target = target.masked_fill(ignored, 0)
    target_logit = logits.gather(1, target)
    # log_softmax by hand, in place: on a CPU torch.log_softmax and then exp take longer
    largest = logits.amax(dim=1, keepdim=True)
    exponentials = logits.sub_(largest).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    nll = (total.log() + largest - target_logit).masked_fill(ignored, 0.0).squeeze(1)
    if not with_gradients:
        return nll, None
    # d NLL / d logits = softmax - onehot(label), and 0 where the label is ignored
    counted = (~ignored).to(accumulate)
    if token_weights is not None:
        counted *= token_weights[:, None]
    scale = counted / total
    at_target = (target_logit - largest).exp() * scale - counted
    return nll, exponentials.mul_(scale).to(dtype).scatter_(1, target, at_target.to(dtype))


def _adjusted(
    logits: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    token_weights: Tensor | None,
    accumulate: torch.dtype,
    with_gradients: bool,
    softcap: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (N, V), without the bias, of a chunk -> the NLLs (N,), what the z-loss adds to each, and, with_gradients,
    d loss_sum / d logits in their dtype."""
    dtype, logits = logits.dtype, logits.to(accumulate)
    bounded = None
    if softcap:
        bounded = (logits / softcap).tanh()
        logits = softcap * bounded
    if bias is not None:
        logits = logits + bias
    target = labels[:, None]
    ignored = target == IGNORE_INDEX
    target = target.masked_fill(ignored, 0)
    target_logit = logits.gather(1, target)
    largest = logits.amax(dim=1, keepdim=True)
    exponentials = (logits - largest).exp()
    total = exponentials.sum(dim=1, keepdim=True)
    log_sum = total.log() + largest
    nll = (log_sum - target_logit).masked_fill(ignored, 0.0).squeeze(1)
    added = (z_loss * log_sum.square()).masked_fill(ignored, 0.0).squeeze(1)
    if not with_gradients:
        return nll, added, None
    # d (NLL + z_loss * log_sum^2) / d logits = (1 + 2 z_loss log_sum) softmax - onehot(label)
    counted = (~ignored).to(accumulate)
    if token_weights is not None:
        counted = counted * token_weights[:, None]
    gradient = exponentials * (counted * (1 + 2 * z_loss * log_sum) / total)
    gradient = gradient.scatter_add(1, target, -counted)
    if bounded is not None:
        gradient = gradient * (1 - bounded.square())
    return nll, added, gradient.to(dtype)


@functools.cache
def _compiled_adjusted() -> Callable[..., tuple[Tensor, Tensor, Tensor | None]]:
    return torch.compile(_adjusted)


@functools.cache
def _compiled_nll_and_gradient() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_nll_and_gradient)


@_fused.register_fake
def _(hidden, weight, bias, labels, token_weights, dtype, with_gradients, compiled, softcap, z_loss):
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    return (
        hidden.new_empty((), dtype=accumulate),
        hidden.new_empty(labels.shape[0], dtype=accumulate),  # not len(): it may be symbolic here
        torch.empty_like(hidden) if with_gradients else hidden.new_empty(0),
        torch.empty_like(weight) if with_gradients else weight.new_empty(0),
    )


def _keep_gradients(ctx, inputs, output):
    ctx.save_for_backward(output[2], output[3])


def _scale_gradients(ctx, grad_loss, *_):
    grad_hidden, grad_weight = ctx.saved_tensors
    return (
        (grad_hidden * grad_loss).to(grad_hidden.dtype),
        (grad_weight * grad_loss).to(grad_weight.dtype),
        *[None] * 8,
    )


_fused.register_autograd(_scale_gradients, setup_context=_keep_gradients)
