"""Writing with drafts (speculative decoding): the drafter writes several tokens at once, the model reads them all in
one step, and those stand that the model could have written; see acceptance.py for the rules.

A round goes from one token that is decided but not read to the next one. It is a fixed sequence of tensor operations:
penalties, shares and acceptance look at no value on the host, so that on a GPU a graph can hold them.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...transformer import TransformerLM
from ..decoder import Decoder
from ..fitted import Tempering
from ..generate import Stopped, Token, generate_tokens, top_logprobs
from ..processing import draw, draw_tokens
from ..settings import GenerationSettings
from .acceptance import block_verified, greedily_verified, typically_verified

MEASURED_TOKENS = 100  # of text that tells whether drafts pay
WORTH_A_DRAFT = 0.2  # how often a draft must have stood lately for it to be made
MEMORY, PROBE_EVERY = 0.9, 16  # rounds: how slowly that is forgotten, and how often all drafts are tried anyway


class Round(NamedTuple):
    """What a round decides, with K drafts."""

    tokens: Tensor  # (K + 1,) int64: the first `stood` drafts, the token after them, and nothing of meaning
    stood: Tensor  # () int64: how many drafts stand
    logits: Tensor  # (K + 1, V): the model's own, at each of these places


class History:
    """A row's tokens on the device, and what the settings make of logits after them: see processing.Penalties."""

    def __init__(
        self,
        settings: GenerationSettings,
        tokens: Sequence[int],
        most: int,
        like: Tensor,
        tempering: Tempering | None = None,
    ):
        """Of a row that starts with `tokens` and gets up to `most` more; like (V,): logits; tempering: what an adaptive
        temperature is."""
        self.settings, self._tempering, device = settings, tempering, like.device
        self._tokens = torch.zeros(len(tokens) + most + settings.no_repeat_ngram, dtype=torch.int64, device=device)
        self._tokens[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        self.length = torch.tensor(len(tokens), device=device)
        self._places = torch.arange(len(self._tokens), device=device)
        self._none = torch.zeros(len(like), dtype=torch.int32, device=device)

    @property
    def penalises(self) -> bool:
        """Whether scores differ from logits."""
        return self.settings.repetition_penalty != 1 or bool(self.settings.no_repeat_ngram)

    def write(self, ahead: int, token: Tensor) -> None:
        """Put token () `ahead` places after the row's end, where it counts for what is written behind it."""
        self._tokens.index_copy_(0, (self.length + ahead)[None], token[None])

    def scores(self, logits: Tensor, ahead: int = 0) -> Tensor:
        """logits (V,) of the token `ahead` places after the row's end -> (V,); 0 where every token is forbidden."""
        scores, penalty = logits.float(), self.settings.repetition_penalty
        if penalty != 1:
            seen = self._none.scatter_add(0, self._tokens, (self._places < self.length + ahead).int()) > 0
            scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        if self.settings.no_repeat_ngram:
            forbidden = self.forbidden(ahead)
            scores = scores.masked_fill(forbidden, -torch.inf).masked_fill(forbidden.all(), 0.0)
        return scores

    def tempered(self, scores: Tensor, logits: Tensor, hidden: Tensor) -> Tensor:
        """Scores (n, V), made of logits (n, V) of states (n, D), divided by the adaptive temperature if any."""
        return scores if self._tempering is None else scores / self._tempering(logits, hidden)[:, None]

    def forbidden(self, ahead: int = 0) -> Tensor:
        """(V,) booleans: the tokens that would make n tokens in a row a second time, n = no_repeat_ngram."""
        size, length = self.settings.no_repeat_ngram, self.length + ahead
        windows = self._tokens.unfold(0, size, 1)
        tail = self._tokens[(length - size + 1).clamp_min(0) + self._places[: size - 1]]
        repeated = (windows[:, :-1] == tail).all(dim=1) & (self._places[: len(windows)] + size <= length)
        return self._none.scatter_add(0, windows[:, -1], repeated.int()) > 0


class Pace:
    """How many drafts the next round makes, by how many stood in the rounds before."""

    def __init__(self, most: int):
        self.most, self._rounds = most, 0
        self._stood = [1.0] * most  # by place: how often lately

    def next(self) -> int:
        self._rounds += 1
        if self._rounds % PROBE_EVERY == 0:
            return self.most
        return max(1, sum(share >= WORTH_A_DRAFT for share in self._stood))

    def learn(self, made: int, stood: int) -> None:
        for place in range(made):
            self._stood[place] = MEMORY * self._stood[place] + (1 - MEMORY) * (place < stood)


class DraftChoice:
    """Whether a model's drafts are used: as the setting says or, for "auto", where a measurement finds them faster. It
    is made once."""

    def __init__(self) -> None:
        self._faster: bool | None = None

    def of(
        self,
        settings: GenerationSettings,
        prompts: Sequence[list[int]],
        model: TransformerLM,
        eos_token_id: int,
        slots: Callable[[int], AbstractContextManager[Decoder]],
        tempering: Tempering | None = None,
    ) -> bool | Literal["typical"]:
        """For texts after `prompts`; `slots` lends a decoder. Raises ValueError where there is no drafter."""
        asked, has_drafter = settings.speculate, model.latent is not None and model.latent.drafter is not None
        if asked != "auto":
            if asked and not has_drafter:
                raise ValueError("speculate needs a model with a drafter; train one with auxiliary.enable_draft.")
            return asked
        if len(prompts) > 1 or not has_drafter:
            return False
        if self._faster is None:
            with slots(1) as decoder, torch.inference_mode():
                plain, drafted = measure(decoder, prompts[0], settings, eos_token_id, tempering)
            self._faster = drafted > plain
            choice = "Writing with drafts" if self._faster else "Writing token by token"
            warnings.warn(
                f"{choice}: {drafted:,.0f} tokens/s with drafts, {plain:,.0f} without, measured once.", stacklevel=6
            )
        return self._faster


def measure(
    decoder: Decoder,
    prompt: list[int],
    settings: GenerationSettings,
    eos_token_id: int,
    tempering: Tempering | None = None,
) -> tuple[float, float]:
    """Tokens/s without and with drafts, by MEASURED_TOKENS tokens each way."""
    settings = replace(settings, max_new_tokens=MEASURED_TOKENS, stop_at_eos=False, logprobs=None, speculate=True)
    rates = (0.0, 0.0)
    for _ in range(2):  # the first time warms up
        begin = time.perf_counter()
        for _ in generate_tokens(decoder, [prompt], settings, eos_token_id, [0], set(), tempering):
            pass
        middle = time.perf_counter()
        for _ in speculated_tokens(decoder, 0, prompt, settings, eos_token_id, 0, set(), tempering):
            pass
        rates = MEASURED_TOKENS / (middle - begin), MEASURED_TOKENS / (time.perf_counter() - middle)
    return rates


def make_round(
    decoder: Decoder, hidden: Tensor, token: Tensor, places: int, history: History, uniforms: Tensor
) -> Round:
    """One round of slot 0: hidden (D,) is the state after the tokens that it holds, token () comes next and is the last
    of `history`. uniforms (2 * places + 1,) in [0, 1)."""
    settings = history.settings
    logits, drafts, shares, previous = decoder.draft(0, hidden, token), [], [], token
    for place in range(places):
        line = decoder.condition(logits[place], previous)
        scores = history.scores(line, place)
        if settings.greedy:
            previous = scores.argmax(-1)
        else:
            # what drafts are drawn from need not be exact: their temperature is by the state before all of them
            scores = history.tempered(scores[None], line[None], hidden[None])
            shares.append(decoder.shares(scores, settings)[0])
            previous = draw(shares[-1][None], uniforms[place][None])[0]
        history.write(place, previous)
        drafts.append(previous)
    drafted = torch.stack(drafts)
    logits = decoder.verify(torch.cat([token[None], drafted])[None])[0]
    scores = torch.stack([history.scores(line, place) for place, line in enumerate(logits)])
    judged = uniforms[None, places : 2 * places]
    if settings.greedy and settings.speculate != "typical":
        count, following = greedily_verified(drafted[None], scores[None])
    else:
        if settings.greedy:
            vocab_size = scores.shape[-1]
            q = torch.nn.functional.one_hot(drafted, vocab_size)
            p = torch.nn.functional.one_hot(scores.argmax(-1), vocab_size)
        else:
            tempered = history.tempered(scores, logits, decoder.hidden)
            q, p = torch.stack(shares), decoder.shares(tempered.clone(), settings)
        if settings.speculate == "typical":
            count, left = typically_verified(drafted[None], q[None], p[None], scores[None], judged)
        else:
            count, left = block_verified(drafted[None], q[None], p[None], judged)
        following = draw(left, uniforms[-1:])
    places_of = torch.arange(places + 1, device=drafted.device)
    tokens = torch.where(places_of < count, torch.cat([drafted, drafted[-1:]]), following)
    return Round(tokens, count[0], logits)


def speculated_tokens(
    decoder: Decoder,
    row: int,
    prompt: Sequence[int],
    settings: GenerationSettings,
    eos_token_id: int,
    sample: int,
    ended: set[int],
    tempering: Tempering | None = None,
) -> Iterator[Token]:
    """Like generate_tokens, for one prompt, whose tokens have the number `row`; the decoder has one slot and a drafter.

    With temperature 0 they are the same tokens. Drawn ones have the same distribution; a seed draws other ones.
    """
    decoder.lengths[0] = 0
    document = [eos_token_id, *prompt]
    logits = decoder.read(0, document[-decoder.window :])
    history = History(settings, prompt, settings.max_new_tokens + decoder.draft_length + 1, logits[0], tempering)
    generator = None if settings.greedy else settings.generator(sample)
    pace, written = Pace(decoder.draft_length), 0

    def uniforms(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64).to(logits.device)

    def choose(line: Tensor) -> Tensor:
        scores = history.scores(line)
        if settings.greedy:
            return scores.argmax(-1, keepdim=True)
        tempered = history.tempered(scores[None], line[None], decoder.hidden[-1:])
        return torch.tensor(draw_tokens(tempered.clone(), settings, uniforms(1).tolist()), device=line.device)

    tokens, hidden = choose(logits[0]), decoder.hidden[-1]
    while True:
        lines = None if settings.logprobs is None else logits.float().log_softmax(-1)
        new = tokens.tolist()
        for place, token in enumerate(new):
            written += 1
            made = Token(row, token, None, drafted=place < len(new) - 1)
            if lines is not None:
                made = made._replace(**top_logprobs(lines[place], token, settings.logprobs))
            stopped: Stopped | None = None
            if settings.no_repeat_ngram and history.forbidden(place).all():
                made, stopped = Token(row, None, "exhausted"), "exhausted"
            elif token == eos_token_id and settings.stop_at_eos:
                made, stopped = made._replace(id=None, stopped="eos"), "eos"
            elif written == settings.max_new_tokens:
                made, stopped = made._replace(stopped="length"), "length"
            if stopped:
                ended.add(row)
            yield made
            if row in ended:
                return
            history.write(place, tokens[place])
        history.length += len(new)
        document += new
        room = decoder.window - decoder.lengths[0]
        places = min(pace.next(), room - 1, settings.max_new_tokens - written - 1)
        if room == 0:
            decoder.lengths[0] = 0
            logits = decoder.read(0, document[-max(1, decoder.window // 2) :])
            tokens, hidden = choose(logits[0]), decoder.hidden[-1]
        elif places < 1:
            logits = decoder.read(0, new[-1:])
            tokens, hidden = choose(logits[0]), decoder.hidden[-1]
        else:
            decoder.place()
            round = make_round(decoder, hidden, tokens[-1], places, history, uniforms(2 * places + 1))
            stood = int(round.stood)
            pace.learn(places, stood)
            decoder.lengths[0] -= places - stood
            tokens, logits, hidden = round.tokens[: stood + 1], round.logits, decoder.hidden[stood]
