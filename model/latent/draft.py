"""The drafter g: several next tokens at once, for a trunk to verify (speculative decoding).

From h_t and the token x_{t+1} that follows it, g makes a state u_k for each of the next places k = 1 ... K. The LM head
reads them in one product, and a low-rank Markov term adds what the token just before a place says about it:

    logits of x_{t+1+k} = head(u_k) + after . before[x_{t+k}]

It learns from the tokens that came and from rollouts of the transition (distillation.py): what psi finds out step by
step, g has to know at once. It recalls the text through the keys and values of the trunk's last block, which are there
anyway.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import NORM_EPS, HeadNorm
from ..config.size import MARKOV_RANK
from ..loss import chunk_tokens, even_chunk, matmul_dtype
from ..positions import rotate
from .policy import Head, log_probabilities
from .trunk import KeysAndValues


class Drafter(nn.Module):
    """An MLP over a state, the token after it and what attention recalls, and the Markov term's two tables."""

    def __init__(self, hidden_size: int, num_heads: int, vocab_rows: int, length: int):
        super().__init__()
        self.length, self.num_heads = length, num_heads
        self.state_norm = nn.LayerNorm(hidden_size)
        self.token_norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.query_norm = HeadNorm(hidden_size // num_heads, eps=NORM_EPS)
        self.recall = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.up = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.direct = nn.Linear(2 * hidden_size, length * hidden_size, bias=False)
        self.down = nn.Linear(2 * hidden_size, length * hidden_size, bias=False)
        self.out_norm = HeadNorm(hidden_size, eps=NORM_EPS)
        self.before = nn.Embedding(vocab_rows, MARKOV_RANK)
        self.after = nn.Embedding(vocab_rows, MARKOV_RANK)

    def begin(self) -> None:
        """Start without a Markov term; only one factor may be zero, or neither would get a gradient."""
        nn.init.normal_(self.before.weight, std=MARKOV_RANK**-0.5)
        nn.init.zeros_(self.after.weight)

    def forward(
        self, hidden: Tensor, embeddings: Tensor, text: KeysAndValues, allowed: Tensor | None, rotations: Tensor | None
    ) -> Tensor:
        """States (B, N, D) and the embeddings of the tokens that follow them -> states (length, B, N, D), one for each
        place after those tokens.

        text: keys and values (B, H, S, D/H) of the last block, of which `allowed`, broadcast to (B, H, N, S), may be
        attended to, None: all; rotations: those of the positions of the tokens, None where the trunk has none.
        """
        x = torch.cat([self.state_norm(hidden), self.token_norm(embeddings)], dim=-1)
        query = self.query_norm(self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        query = query if rotations is None else rotate(query, rotations)
        keys, values = text
        recalled = F.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype), allowed)
        inner = F.gelu(self.up(x) + self.recall(recalled.transpose(1, 2).flatten(2)))
        drafted = self.direct(x) + self.down(inner)
        return self.out_norm(drafted.unflatten(-1, (self.length, -1))).movedim(-2, 0)


def draft_losses(
    drafted: Tensor,
    head: Head,
    previous: Tensor,
    after: Tensor,
    labels: Tensor,
    teachers: Tensor,
    valid: Tensor,
) -> Tensor:
    """A scalar, the sum in nats, in fp32: how far one place's drafts are from what they should be, where `valid` (N,).

    drafted (N, D): u_k; previous (1 + J, N, rank): `before` of the token before the place, in the text and in each of J
    rollouts; after (V, rank); labels (N,) int64: the tokens that came; teachers (J, N, D): the rollouts' states before
    the place. Without rollouts the cross-entropy of the labels, with them the mean of that and of the rollouts' mean
    KL(teacher || draft). Differentiable with respect to drafted, previous and after; neither the head nor the teachers
    get a gradient.
    """
    inputs = (drafted, previous, after)
    with_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    dtype = matmul_dtype(drafted)
    loss_sum, *_ = _fused(
        drafted, previous, after, head.weight.detach(), head.vocab_size, labels, teachers.detach(), valid, dtype,
        with_gradients,
    )  # fmt: skip
    return loss_sum


@torch.library.custom_op("forethought::draft_losses", mutates_args=())
def _fused(
    drafted: Tensor,
    previous: Tensor,
    after: Tensor,
    weight: Tensor,
    vocab_size: int,
    labels: Tensor,
    teachers: Tensor,
    valid: Tensor,
    dtype: torch.dtype,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(the sum, and its gradients with respect to drafted, previous and after): these are empty unless
    with_gradients."""
    accumulate = torch.promote_types(drafted.dtype, torch.float32)
    losses = drafted.new_zeros(len(labels), dtype=accumulate)
    gradients = tuple(
        torch.zeros_like(tensor, dtype=accumulate) if with_gradients else tensor.new_empty(0)
        for tensor in (drafted, previous, after)
    )
    shares = [1.0] if not len(teachers) else [0.5] + [0.5 / len(teachers)] * len(teachers)
    chunk = even_chunk(len(labels), max(1, chunk_tokens(weight) // 6))
    with torch.autocast(drafted.device.type, enabled=False):
        low_weight, low_after = weight.to(dtype), after.to(dtype)
        for start in range(0, len(labels), chunk):
            rows = slice(start, start + chunk)
            unconditional = F.linear(drafted[rows].to(dtype), low_weight).to(accumulate)
            total = torch.zeros_like(unconditional)
            for number, share in enumerate(shares):
                low_previous = previous[number, rows].to(dtype)
                log_q = log_probabilities(unconditional + F.linear(low_previous, low_after), vocab_size, accumulate)
                if number == 0:
                    target = labels[rows, None]
                    loss = -log_q.gather(1, target)[:, 0]
                    gradient = log_q.exp_()
                    gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
                else:
                    teacher = F.linear(teachers[number - 1, rows].to(dtype), low_weight)
                    log_p = log_probabilities(teacher, vocab_size, accumulate)
                    p = log_p.exp()
                    loss = torch.linalg.vecdot(p, log_p) - torch.linalg.vecdot(p, log_q)
                    gradient = log_q.exp_().sub_(p)
                losses[rows] += share * loss
                if with_gradients:
                    low_gradient = gradient.mul_(share * valid[rows, None].to(accumulate)).to(dtype)
                    total += gradient
                    gradients[1][number, rows] = (low_gradient @ low_after).to(accumulate)
                    gradients[2].add_((low_gradient.T @ low_previous).to(accumulate))
            if with_gradients:
                gradients[0][rows] = (total.to(dtype) @ low_weight).to(accumulate)
    grad_drafted, grad_previous, grad_after = (
        gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, (drafted, previous, after), strict=True)
    )
    return losses.masked_fill_(~valid, 0.0).sum(), grad_drafted, grad_previous, grad_after


@_fused.register_fake
def _(drafted, previous, after, weight, vocab_size, labels, teachers, valid, dtype, with_gradients):
    accumulate = torch.promote_types(drafted.dtype, torch.float32)
    return (
        drafted.new_empty((), dtype=accumulate),
        *(torch.empty_like(t) if with_gradients else t.new_empty(0) for t in (drafted, previous, after)),
    )


def _keep_gradients(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx, grad_sum, *_):
    return *((gradient * grad_sum).to(gradient.dtype) for gradient in ctx.saved_tensors), *[None] * 7


_fused.register_autograd(_scale_gradients, setup_context=_keep_gradients)


@torch.no_grad()
def sample_tokens(hidden: Tensor, head: Head, uniforms: Tensor) -> Tensor:
    """hidden (N, D), uniforms (J, N) in [0, 1) -> (J, N) int64: tokens drawn from what the head says, by inversion."""
    tokens = torch.empty(uniforms.shape, dtype=torch.int64, device=hidden.device)
    weight = head.weight[: head.vocab_size].to(hidden.dtype)
    chunk = even_chunk(len(hidden), max(1, chunk_tokens(weight) // 3))
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        sums = F.linear(hidden[rows], weight).float().softmax(dim=-1).cumsum(dim=-1)
        places = uniforms[:, rows].T.contiguous() * sums[:, -1:]
        tokens[:, rows] = torch.searchsorted(sums, places, right=True).T
    return tokens.clamp_(max=head.vocab_size - 1)
