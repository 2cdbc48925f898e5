"""What happens to a row's logits before a token is chosen; in the order, and with the results, of transformers:

    repetition_penalty, no_repeat_ngram, logits_processors      `Penalties`, of what the row holds so far
    temperature, top_k, top_p, min_p                            `probabilities`, where tokens are drawn

On a CPU sampling.c does the last line and draws, in one call; `probabilities` and `draw` define what it does.
The end-of-text token that every document begins with is no part of what a row holds: it may be repeated.
"""

import ctypes
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import kernel
from .settings import GenerationSettings

LEAST_TEMPERATURE = 1e-30  # at which all but the likeliest token have probability 0; less could be 0 in fp32


class Penalties:
    """One row's tokens, and what they do to its next logits."""

    def __init__(self, settings: GenerationSettings, tokens: Sequence[int], vocab_size: int):
        self.tokens: list[int] = []
        self._settings, self._size = settings, settings.no_repeat_ngram
        self._followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)  # of n - 1 tokens
        self._seen = torch.zeros(vocab_size if settings.repetition_penalty != 1 else 0, dtype=torch.bool)
        for token in tokens:
            self.add(token)

    @property
    def active(self) -> bool:
        settings = self._settings
        return bool(settings.repetition_penalty != 1 or settings.no_repeat_ngram or settings.logits_processors)

    def add(self, token: int) -> None:
        """The row holds one more token."""
        if self._size and len(self.tokens) >= self._size - 1:
            self._followers[self._tail()].add(token)
        self.tokens.append(token)
        if len(self._seen):
            self._seen[token] = True

    def apply(self, scores: Tensor) -> Tensor:
        """scores (V,), which may be overwritten -> (V,)."""
        if len(self._seen):
            seen, penalty = self._seen.to(scores.device), self._settings.repetition_penalty
            scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        if self._size and (forbidden := self._followers.get(self._tail())):
            scores[list(forbidden)] = -torch.inf
        if self._settings.logits_processors:
            ids, scores = torch.tensor([self.tokens], dtype=torch.int64, device=scores.device), scores[None]
            for processor in self._settings.logits_processors:
                scores = processor(ids, scores)
            scores = scores[0]
        return scores

    def copy(self) -> "Penalties":
        """For a row that goes on differently from here."""
        return Penalties(self._settings, self.tokens, len(self._seen))

    def _tail(self) -> tuple[int, ...]:
        return tuple(self.tokens[len(self.tokens) - self._size + 1 :])


def draw_tokens(scores: Tensor, settings: GenerationSettings, uniforms: Sequence[float]) -> list[int]:
    """A token for each row of scores (B, V), which may be overwritten, by one number in [0, 1) each.

    Raises ValueError where a row holds NaN or positive infinity.
    """
    rows, size = scores.shape
    library = kernel.library() if scores.device.type == "cpu" else None
    if library is None:
        numbers = torch.tensor(uniforms, dtype=torch.float64, device=scores.device)
        tokens = draw(probabilities(scores, settings), numbers).tolist()
    else:
        scores, drawn = scores.contiguous(), (ctypes.c_int64 * rows)()
        library.draw(
            scores.data_ptr(), rows, size, max(settings.number, LEAST_TEMPERATURE), settings.top_k,
            settings.top_p, settings.min_p, (ctypes.c_double * rows)(*uniforms), drawn, torch.get_num_threads(),
        )  # fmt: skip
        tokens = drawn[:]
    if size in tokens:
        raise ValueError("the logits hold NaN or +inf, so no token can be drawn; look at logits_processors.")
    return tokens


def shares_by_kernel(scores: Tensor, settings: GenerationSettings) -> Tensor:
    """`probabilities` on a CPU with a kernel; the scores, which are contiguous, are overwritten with them."""
    library = kernel.library()
    assert library is not None
    library.shares(
        scores.data_ptr(), *scores.shape, max(settings.number, LEAST_TEMPERATURE), settings.top_k, settings.top_p,
        settings.min_p, torch.get_num_threads(),
    )  # fmt: skip
    return scores


def probabilities(scores: Tensor, settings: GenerationSettings) -> Tensor:
    """scores (B, V) -> (B, V): what tokens are drawn from, up to a factor for each row; 0 for what is cut off.

    Of top_k and top_p a token is kept if those likelier than it are fewer than k, or have less than p together. So
    tokens exactly as likely as the last one kept are kept, too. (top_p: arXiv 1904.09751; min_p: arXiv 2407.01082.)
    """
    # Relative to the largest, so that dividing by a tiny temperature overflows to -inf only.
    scores = (scores - scores.amax(-1, keepdim=True)) / max(settings.number, LEAST_TEMPERATURE)
    if 0 < settings.top_k < scores.shape[-1]:
        least = scores.topk(settings.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    shares = scores.exp()  # the likeliest token's is 1
    if settings.top_p < 1:
        descending = _sort(shares).flip(-1)
        sums = descending.cumsum(-1, dtype=torch.float64)
        left_out = (sums - descending >= settings.top_p * sums[:, -1:]).sum(-1, keepdim=True)
        least = descending.gather(-1, scores.shape[-1] - 1 - left_out)
        shares = torch.where(shares < least, 0, shares)
    return torch.where(shares < settings.min_p, 0, shares)


def draw(shares: Tensor, uniforms: Tensor) -> Tensor:
    """shares (B, V), uniforms (B,) in [0, 1) -> (B,) int64: by inversion of the cumulative sums, which are in fp64 so
    that no share is lost in rounding."""
    sums = shares.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sums, uniforms[:, None].double() * sums[:, -1:], right=True)[:, 0]


def _sort(shares: Tensor) -> Tensor:
    """In ascending order."""
    if shares.device.type == "cpu":  # numpy's sort uses vectors, and takes a twentieth of torch's time
        return torch.from_numpy(np.sort(shares.numpy(), axis=-1))
    return shares.sort(dim=-1).values
