"""Choosing one token from logits: greedy, temperature, nucleus (top-p), and no repeated n-grams.

Sampling runs on the CPU in fp32 with a generator of its own: a seed gives the same choices for the same logits on every
device, and torch's global random state does not change.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TEMPERATURE = 1e30  # at which all tokens are equally likely


@dataclass(frozen=True)
class SamplingOptions:
    """Arguments of generation. Raises ValueError, in one sentence, for a value outside its range."""

    max_new_tokens: int = 64
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 0.9
    no_repeat_ngram: int = 0  # 0 = off
    seed: int | None = None  # None = a different continuation each time
    stop_at_eos: bool = True

    def __post_init__(self) -> None:
        whole = {"max_new_tokens": (self.max_new_tokens, 1), "no_repeat_ngram": (self.no_repeat_ngram, 0)}
        if self.seed is not None:
            whole["seed"] = (self.seed, 0)
        for name, (value, least) in whole.items():
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
                raise ValueError(f"{name} is {value!r}; give a whole number, {least} or more.")
        if not _is_number(self.temperature) or not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature!r}; give 0 (greedy) or a number up to {MAX_TEMPERATURE:g}."
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}; give a number above 0 and up to 1.")

    def generator(self) -> torch.Generator:
        """A new generator: seeded, or from the system's entropy."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class RepeatedNgrams:
    """Tokens that would complete an n-gram that has occurred already; size 0 forbids nothing."""

    def __init__(self, size: int, tokens: Iterable[int]):
        self.size = size
        self.tail: tuple[int, ...] = ()
        self.followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        if self.size == 0:
            return
        if len(self.tail) == self.size - 1:
            self.followers[self.tail].add(token)
        self.tail = (*self.tail, token)[-(self.size - 1) :] if self.size > 1 else ()

    def forbidden(self) -> set[int]:
        return self.followers.get(self.tail, set())


def choose(logits: Tensor, options: SamplingOptions, forbidden: set[int], generator: torch.Generator) -> int | None:
    """One token id from logits (V,), or None when every token is forbidden."""
    logits = logits.float().cpu()
    if forbidden:
        logits = logits.clone()
        logits[list(forbidden)] = -torch.inf
        if torch.isneginf(logits).all():
            return None
    if options.temperature == 0:
        return int(logits.argmax())
    probabilities = nucleus(logits, options.temperature, options.top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities (V,) at `temperature`, cut to the fewest likeliest tokens whose mass reaches top_p (at least one).

    (Nucleus sampling: arXiv 1904.09751.)
    """
    # Relative to the largest logit and in fp64, so that dividing by a tiny temperature overflows to -inf only.
    probabilities = torch.softmax((logits - logits.max()).double() / temperature, dim=-1).to(logits.dtype)
    if top_p >= 1:
        return probabilities
    descending, order = probabilities.sort(descending=True)
    mass_before = descending.cumsum(0) - descending
    kept = mass_before < top_p
    kept[0] = True  # also where top_p is below rounding
    descending = descending * kept
    return torch.zeros_like(probabilities).scatter_(0, order, descending / descending.sum())
