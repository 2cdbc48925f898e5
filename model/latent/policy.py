"""The policy's loss: the KL divergence from the trunk's distribution at a position to the one that the LM head reads
from predicted states of it.

Like the cross-entropy in loss.py it processes tokens in chunks and computes gradients while the logits of a chunk are
in memory. The teacher's logits of a chunk serve all depths. Neither they nor the head get a gradient: this loss may
move the states, never what the tokens mean.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..loss import chunk_tokens, even_chunk, matmul_dtype

_LOWEST = -1e30  # as good as -inf in a softmax, but times zero it is zero


class Head(NamedTuple):
    """The LM head that reads predicted states."""

    weight: Tensor  # (V, D)
    vocab_size: int  # its first rows; the others are padding
    compiled: bool = False  # whether torch.compile fuses what is done with logits in bf16


def linear_kl(predicted: Tensor, hidden: Tensor, head: Head, valid: Tensor) -> tuple[Tensor, Tensor]:
    """KL(softmax(hidden @ weight.T) || softmax(predicted @ weight.T)) over the vocabulary of `head`.

    predicted (K, N, D): K predictions of hidden (N, D); valid (K, N) booleans: the predictions that count.
    Returns (kl_sum, kl): the scalar fp32 sum in nats, differentiable with respect to `predicted` alone, and each KL
    (K, N), fp32, detached, 0 where it does not count.
    """
    with_gradients = torch.is_grad_enabled() and predicted.requires_grad
    hidden, (weight, vocab_size, compiled) = hidden.detach(), head
    dtype = matmul_dtype(hidden)
    kl, _ = _fused(predicted, hidden, weight.detach(), vocab_size, valid, dtype, with_gradients, compiled)
    return kl.sum(), kl.detach()


@torch.library.custom_op("forethought::linear_kl", mutates_args=())
def _fused(
    predicted: Tensor,
    hidden: Tensor,
    weight: Tensor,
    vocab_size: int,
    valid: Tensor,
    dtype: torch.dtype,
    with_gradients: bool,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    """(kl, d kl.sum() / d predicted); the gradient is empty unless with_gradients."""
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    kl = predicted.new_zeros(predicted.shape[:2], dtype=accumulate)
    gradient = torch.empty_like(predicted) if with_gradients else predicted.new_empty(0)
    fuse = compiled and dtype != accumulate
    compute = _compiled_kl_and_gradient() if fuse else _kl_and_gradient
    depths = len(predicted)
    # A chunk's logits of teacher and predictions: where they are fused, intermediate results take half the memory.
    most = chunk_tokens(weight) // (1 + depths) if fuse else chunk_tokens(weight) // (2 + 2 * depths)
    chunk = even_chunk(len(hidden), max(1, most))
    with torch.autocast(hidden.device.type, enabled=False):
        low_hidden, low_predicted, low_weight = hidden.to(dtype), predicted.to(dtype), weight.to(dtype)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            teacher = F.linear(low_hidden[rows], low_weight)
            student = F.linear(low_predicted[:, rows].flatten(0, 1), low_weight).unflatten(0, (depths, -1))
            kl[:, rows], grad_logits = compute(teacher, student, valid[:, rows], vocab_size, accumulate, with_gradients)
            if grad_logits is not None:
                gradient[:, rows] = (grad_logits.flatten(0, 1) @ low_weight).unflatten(0, (depths, -1))
    return kl, gradient


def _kl_and_gradient(
    teacher: Tensor, student: Tensor, valid: Tensor, vocab_size: int, accumulate: torch.dtype, with_gradients: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits (N, V) and (K, N, V) and valid (K, N) -> KLs (K, N) and, with_gradients, the gradient of their sum
    (K, N, V)."""
    log_p = log_probabilities(teacher, vocab_size, accumulate)
    log_q = log_probabilities(student, vocab_size, accumulate)
    p = log_p.exp()
    # KL(p || q) = sum p log p - sum p log q
    kl = (torch.linalg.vecdot(p, log_p) - torch.linalg.vecdot(p, log_q)).masked_fill(~valid, 0.0)
    if not with_gradients:
        return kl, None
    # d KL / d logits_q = q - p
    return kl, log_q.exp_().sub_(p).masked_fill_(~valid[..., None], 0.0).to(student.dtype)


def log_probabilities(logits: Tensor, vocab_size: int, accumulate: torch.dtype) -> Tensor:
    """Logits (..., V) -> log-probabilities of the first vocab_size rows; the others, padding, get none. Logits in
    `accumulate` may be overwritten."""
    logits = logits.to(accumulate)
    if vocab_size < logits.shape[-1]:
        logits[..., vocab_size:] = _LOWEST
    return logits.log_softmax(dim=-1)


@functools.cache
def _compiled_kl_and_gradient() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_kl_and_gradient)


@_fused.register_fake
def _(predicted, hidden, weight, vocab_size, valid, dtype, with_gradients, compiled):
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    return (
        predicted.new_empty(predicted.shape[:2], dtype=accumulate),
        torch.empty_like(predicted) if with_gradients else predicted.new_empty(0),
    )


def _keep_gradient(ctx, inputs, output):
    ctx.save_for_backward(output[1])


def _scale_gradient(ctx, grad_kl, _):
    (gradient,) = ctx.saved_tensors
    return (gradient * grad_kl[..., None]).to(gradient.dtype), *[None] * 7


_fused.register_autograd(_scale_gradient, setup_context=_keep_gradient)
