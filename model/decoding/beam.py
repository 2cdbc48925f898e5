"""Beam search: continuations by the sum of their tokens' log-probabilities, divided by length ** length_penalty."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..memory import begin
from .decoder import Decoder
from .generate import Stopped
from .processing import Penalties
from .settings import GenerationSettings


class Beam(NamedTuple):
    """A continuation that was found. Its score compares continuations of one prompt."""

    tokens: list[int]
    score: float
    stopped: Stopped


def search(decoder: Decoder, prompt: Sequence[int], settings: GenerationSettings, eos_token_id: int) -> list[Beam]:
    """The num_samples best of the continuations that num_beams beams find, the best first.

    The decoder has num_beams slots. Raises ValueError where prompt and continuation do not fit its window: what a beam
    has read cannot be forgotten while it is compared with others.
    """
    width, penalty = settings.num_beams, settings.length_penalty
    read = [eos_token_id, *prompt]
    if len(read) + settings.max_new_tokens - 1 > decoder.window:
        raise ValueError(
            f"beam search needs prompt and continuation to fit {decoder.window} tokens, and these have "
            f"{len(read)} and {settings.max_new_tokens}; lower max_new_tokens."
        )
    for slot in range(len(decoder.lengths)):
        begin(decoder, slot)
    logits = decoder.read(0, read).float().clone()
    decoder.reorder([0] * width)
    beams = [Penalties(settings, prompt, logits.shape[-1])]
    scores = torch.zeros(1)
    found: list[Beam] = []
    for length in range(1, settings.max_new_tokens + 1):
        steps = torch.stack([beam.apply(line) for beam, line in zip(beams, logits.log_softmax(-1).cpu(), strict=True)])
        totals = (scores[:, None] + steps).flatten()
        # Of twice as many, at least `width` do not end here: each beam has one end-of-text token.
        best = totals.topk(min(2 * width, len(totals)))
        going: list[tuple[float, int, int]] = []
        for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, token = divmod(place, steps.shape[-1])
            if total == -torch.inf or len(going) == width:
                break
            if token == eos_token_id and settings.stop_at_eos:
                if rank < width:
                    tokens = beams[beam].tokens[len(prompt) :]
                    found.append(Beam(tokens, total / length**penalty, "eos"))
            else:
                going.append((total, beam, token))
        found = sorted(found, key=lambda beam: -beam.score)[:width]
        if not going:
            break
        if length == settings.max_new_tokens:
            for total, beam, token in going:
                tokens = [*beams[beam].tokens[len(prompt) :], token]
                found.append(Beam(tokens, total / length**penalty, "length"))
            break
        if len(found) == width and found[-1].score >= _most(going[0][0], length, settings):
            break
        sources = [beam for _, beam, _ in going]
        beams = [beams[beam].copy() for beam in sources]
        for beam, (_, _, token) in zip(beams, going, strict=True):
            beam.add(token)
        decoder.reorder([*sources, *[0] * (width - len(sources))])
        logits = decoder.step(range(len(going)), [token for _, _, token in going]).float().clone()
        scores = torch.tensor([total for total, _, _ in going])
    return sorted(found, key=lambda beam: -beam.score)[: settings.num_samples]


def _most(total: float, length: int, settings: GenerationSettings) -> float:
    """The largest score that a beam can still reach: its total only falls."""
    longest = settings.max_new_tokens if settings.length_penalty > 0 else length
    return total / longest**settings.length_penalty
