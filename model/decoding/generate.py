"""Writing token by token, several rows at a time; each row gets the tokens that it would get alone.

A document follows an end-of-text token, as in training; only the last tokens of a longer prompt are read. When a row's
window of seq_length tokens is full, its last half is read anew: learned positions cannot slide, and reading half a
window once costs far less than reading the whole window for every token. With memory tokens the other half is summed
up, and of a longer prompt what comes before its last tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..memory import begin, slide
from .decoder import Decoder
from .fitted import Tempering
from .planning.choice import Choice
from .processing import Penalties, draw_tokens
from .settings import GenerationSettings

Stopped = Literal["eos", "length", "stop", "exhausted"]
UNIFORMS_AT_A_TIME = 64


class Token(NamedTuple):
    """One step of one row. `id` is None where the row ends without one: `stopped` says why."""

    row: int
    id: int | None
    stopped: Stopped | None  # None: the row goes on
    logprob: float | None = None  # nats of the chosen token under the model, before any setting; None: not asked for
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens and their log-probabilities
    drafted: bool = False  # whether it is a draft that stood: see drafts/
    choice: Choice | None = None  # what was weighed before it was written: see planning/


class _Row:
    """A document that grows."""

    def __init__(self, number: int, prompt: Sequence[int], settings: GenerationSettings, sample: int, vocab_size: int):
        self.number, self.settings = number, settings
        self.penalties = Penalties(settings, prompt, vocab_size)
        self.written = 0
        self._generator = None if settings.greedy else settings.generator(sample)
        self._uniforms: list[float] = []

    def add(self, token: int) -> None:
        self.written += 1
        self.penalties.add(token)

    def uniform(self) -> float:
        """The next random number in [0, 1)."""
        if not self._uniforms:
            drawn = torch.rand(UNIFORMS_AT_A_TIME, generator=self._generator, dtype=torch.float64)
            self._uniforms = drawn.tolist()[::-1]
        return self._uniforms.pop()


def generate_tokens(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    eos_token_id: int,
    samples: Sequence[int],
    ended: set[int],
    tempering: Tempering | None = None,
) -> Iterator[Token]:
    """Yield the tokens that continue `prompts`, of which any may be empty, as they are decided, row by row.

    The decoder has a slot for each prompt; samples[i] is the number of text i among those of one prompt. Rows whose
    numbers the caller adds to `ended` get no more tokens. `tempering` says what an adaptive temperature is.
    """
    rows = [_Row(i, prompt, settings, samples[i], decoder.vocab_size) for i, prompt in enumerate(prompts)]
    pending: list[tuple[Tensor, Tensor]] = []
    for row, prompt in zip(rows, prompts, strict=True):
        pending.append(read_prompt(decoder, row.number, [eos_token_id, *prompt]))
    logits, hidden = map(torch.stack, zip(*pending, strict=True))
    while rows:
        temperatures = None if tempering is None else tempering(logits, hidden)
        for row, token in zip(rows, _choose(logits, rows, settings, temperatures), strict=True):
            if token.id == eos_token_id and settings.stop_at_eos:
                token = token._replace(id=None, stopped="eos")
            elif token.id is not None:
                row.add(token.id)
                if row.written == settings.max_new_tokens:
                    token = token._replace(stopped="length")
            if token.stopped:
                ended.add(row.number)
            yield token
        rows = [row for row in rows if row.number not in ended]
        if rows:
            logits, hidden = _read(decoder, rows, eos_token_id)


def _read(decoder: Decoder, rows: Sequence[_Row], eos_token_id: int) -> tuple[Tensor, Tensor]:
    """The logits (len(rows), V) after each row's newest token, and its states (len(rows), D)."""
    full = [row for row in rows if decoder.lengths[row.number] == decoder.window]
    going = [row for row in rows if decoder.lengths[row.number] < decoder.window]
    by_row = {}
    if going:
        logits = decoder.step([row.number for row in going], [row.penalties.tokens[-1] for row in going])
        if not full:
            return logits, decoder.hidden
        by_row = {
            row.number: (line.clone(), state.clone())
            for row, line, state in zip(going, logits, decoder.hidden, strict=True)
        }
    for row in full:
        document = [eos_token_id, *row.penalties.tokens]
        by_row[row.number] = _read_one(decoder, row.number, document[-slide(decoder, row.number) :])
    logits, hidden = zip(*(by_row[row.number] for row in rows), strict=True)
    return torch.stack(logits), torch.stack(hidden)


def read_prompt(decoder: Decoder, slot: int, document: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The logits (V,) and the state (D,) after a document, of which a slot reads the end, or with memory all."""
    begin(decoder, slot)
    window, start = decoder.window, 0
    if decoder.memory is None:
        return _read_one(decoder, slot, document[-window:])
    while start + window < len(document):
        decoder.read(slot, document[start : start + window])
        start += window + 1 - slide(decoder, slot)
    return _read_one(decoder, slot, document[start:])


def _read_one(decoder: Decoder, slot: int, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The logits (V,) and the state (D,) after the last of the tokens, which are appended to a slot."""
    logits = decoder.read(slot, tokens)[0].clone()
    return logits, decoder.hidden[-1].clone()


def _choose(
    logits: Tensor, rows: Sequence[_Row], settings: GenerationSettings, temperatures: Tensor | None
) -> list[Token]:
    """One token for each row from logits (len(rows), V), which may be overwritten."""
    logits = logits.float()
    logprobs = None if settings.logprobs is None else logits.log_softmax(-1)
    if rows[0].penalties.active:
        logits = torch.stack([row.penalties.apply(line) for row, line in zip(rows, logits, strict=True)])
        exhausted = (logits.amax(-1) == -torch.inf).tolist()
        if any(exhausted):
            logits[exhausted] = 0
    else:
        exhausted = [False] * len(rows)
    if settings.greedy:
        ids = logits.argmax(-1).tolist()
    else:
        logits = logits if temperatures is None else logits / temperatures[:, None]
        ids = draw_tokens(logits, settings, [row.uniform() for row in rows])
    tokens = [
        Token(row.number, None, "exhausted") if none else Token(row.number, id, None)
        for row, id, none in zip(rows, ids, exhausted, strict=True)
    ]
    if logprobs is None:
        return tokens
    return [
        token._replace(**top_logprobs(line, token.id, settings.logprobs))
        for token, line in zip(tokens, logprobs, strict=True)
    ]


def top_logprobs(logprobs: Tensor, chosen: int | None, most: int | None) -> dict:
    top = logprobs.topk(min(most or 0, len(logprobs)))
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return {"logprob": None if chosen is None else logprobs[chosen].item(), "top": likeliest}
