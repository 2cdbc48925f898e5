"""The policy's loss: KL from what the trunk says at a position to what the LM head reads from predicted states of it.

Like the cross-entropy in objectives.py it walks the tokens in chunks and makes the gradients while a chunk's logits are
at hand. The teacher's logits of a chunk serve all depths, and neither they nor the head get a gradient: this loss may
move the states, never what the words mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.objectives import chunk_tokens, matmul_dtype

_LOWEST = -1e30  # as good as -inf in a softmax, but zero times it is zero


def linear_kl(
    predicted: Tensor, hidden: Tensor, weight: Tensor, vocab_size: int, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """KL(softmax(hidden @ weight.T) || softmax(predicted @ weight.T)) over the first vocab_size rows of weight (V, D).

    predicted (K, N, D): K predictions of hidden (N, D); valid (K, N) booleans: which of them count.
    Returns (kl_sum, kl): the scalar fp32 sum in nats, differentiable with respect to predicted alone, and each KL
    (K, N), fp32, detached, 0 where it does not count.
    """
    with_gradients = torch.is_grad_enabled() and predicted.requires_grad
    hidden, weight = hidden.detach(), weight.detach()
    kl, _ = _fused(predicted, hidden, weight, vocab_size, valid, matmul_dtype(hidden), with_gradients)
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
) -> tuple[Tensor, Tensor]:
    """(kl, d kl.sum() / d predicted); the gradient is empty unless asked for."""
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    kl = predicted.new_zeros(predicted.shape[:2], dtype=accumulate)
    gradient = torch.empty_like(predicted) if with_gradients else predicted.new_empty(0)
    chunk = max(1, chunk_tokens(weight) // 4)  # up to four such tensors are in use at a time
    with torch.autocast(hidden.device.type, enabled=False):
        low_hidden, low_predicted, low_weight = hidden.to(dtype), predicted.to(dtype), weight.to(dtype)

        def log_probabilities(states: Tensor) -> Tensor:
            logits = F.linear(states, low_weight).to(accumulate)
            logits[:, vocab_size:] = _LOWEST
            return logits.log_softmax(dim=1)

        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            # KL(p || q) = sum p log p - sum p log q
            log_p = log_probabilities(low_hidden[rows])
            teacher = log_p.exp()
            negative_entropy = torch.linalg.vecdot(teacher, log_p)
            for depth, counted in enumerate(valid[:, rows]):
                log_q = log_probabilities(low_predicted[depth, rows])
                each = negative_entropy - torch.linalg.vecdot(teacher, log_q)
                kl[depth, rows] = each.masked_fill(~counted, 0.0)
                if with_gradients:
                    grad_logits = log_q.exp_().sub_(teacher).to(dtype)  # d KL / d logits_q = q - p
                    states_gradient = (grad_logits @ low_weight).masked_fill_(~counted[:, None], 0.0)
                    gradient[depth, rows] = states_gradient.to(gradient.dtype)
    return kl, gradient


@_fused.register_fake
def _(predicted, hidden, weight, vocab_size, valid, dtype, with_gradients):
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    return (
        predicted.new_empty(predicted.shape[:2], dtype=accumulate),
        torch.empty_like(predicted) if with_gradients else predicted.new_empty(0),
    )


def _keep_gradient(ctx, inputs, output):
    ctx.save_for_backward(output[1])


def _scale_gradient(ctx, grad_kl, _):
    (gradient,) = ctx.saved_tensors
    return (gradient * grad_kl[..., None]).to(gradient.dtype), None, None, None, None, None, None


_fused.register_autograd(_scale_gradient, setup_context=_keep_gradient)
