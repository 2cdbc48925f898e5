"""Prompts to texts: what `LanguageModel.generate` and `stream` do once their arguments are checked."""

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, starmap
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..memory import begin, slide
from ..transformer import TransformerLM
from .beam import search
from .decoder import Decoder, Precision, Weights
from .drafts.speculation import DraftChoice, speculated_tokens
from .fitted import Fitted
from .generate import Stopped, Token, generate_tokens
from .planning.choice import Choice
from .planning.planner import planned_tokens
from .planning.router import ROUTED
from .settings import GenerationSettings
from .text import TextStream

_NOTHING = Fitted()
ROWS_AT_A_TIME = 64  # of a long list of prompts; each row has keys and values in memory


class TokenLogprob(NamedTuple):
    """How likely the model found a token, before any setting changed that; log-probabilities in nats."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]  # the likeliest tokens, the likeliest first


class Plan(NamedTuple):
    """What planning a text took."""

    gates: int  # places where the model was uncertain enough to plan
    candidates: int  # tokens that were weighed there
    forwards: int  # forward calls of the model after the prompt, those in which candidates were read among them
    choices: dict[int, Choice]  # by the number of the token that was chosen


class Generation(str):
    """A text that a model wrote: a string that also says how it came about."""

    tokens: list[int]  # the ids of `text`'s tokens, up to the one with which a stop string was complete
    logprobs: list[TokenLogprob] | None  # of `tokens`, where asked for
    drafted: list[bool]  # of `tokens`: whether it was a draft that stood, so that no step of the model went into it
    stopped: Stopped  # why it ended: "eos", "length", "stop", or "exhausted", where every token was forbidden
    plan: Plan | None  # what was weighed on the way, where it was asked to plan

    def __new__(
        cls,
        text: str,
        tokens: list[int],
        logprobs: list[TokenLogprob] | None,
        stopped: Stopped,
        drafted: list[bool] | None = None,
        plan: Plan | None = None,
    ) -> "Generation":
        generation = super().__new__(cls, text)
        generation.tokens, generation.logprobs, generation.stopped = tokens, logprobs, stopped
        generation.drafted, generation.plan = [False] * len(tokens) if drafted is None else drafted, plan
        return generation

    @property
    def text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return "".join(self)


@dataclass
class _Text:
    """A row's text while it is written."""

    stream: TextStream
    prompt: list[int] = field(default_factory=list)
    sample: int = 0  # which of the texts of its prompt it is
    pieces: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    choices: dict[int, Choice] = field(default_factory=dict)
    stopped: Stopped = "length"


class Writer:
    """A model and its tokenizer, writing. The model's weights may change between calls."""

    def __init__(self, model: TransformerLM, tokenizer: Tokenizer, eos_token_id: int, precision: Precision):
        self.model, self.tokenizer, self.eos_token_id = model, tokenizer, eos_token_id
        self.precision: Precision = precision
        self._weights: Weights | None = None
        self._version: list[tuple[int, int]] = []
        self._idle: dict[int, Decoder] = {}  # by the number of slots
        self._announced = False
        self._drafts = DraftChoice()

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[list[int]], settings: GenerationSettings, fitted: Fitted = _NOTHING
    ) -> list[list[Generation]]:
        """For each prompt num_samples texts; `fitted` is what was fitted to the model."""
        if settings.num_beams > 1:
            return [self._search(prompt, settings) for prompt in prompts]
        texts = _begin(prompts, settings, self.tokenizer)
        for first in range(0, len(texts), ROWS_AT_A_TIME):
            for _ in self._write(texts[first : first + ROWS_AT_A_TIME], settings, fitted):
                pass
        echoes = [self._echo(prompt, settings) for prompt in prompts]
        done = [self._generation(text, echoes[i // settings.num_samples], settings) for i, text in enumerate(texts)]
        return [done[first : first + settings.num_samples] for first in range(0, len(done), settings.num_samples)]

    def stream(
        self, prompts: Sequence[list[int]], settings: GenerationSettings, fitted: Fitted = _NOTHING
    ) -> Generator[tuple[int, str], None, list[Generation]]:
        """Yield (number of the prompt, piece of its text) as soon as it is decided; return the whole texts."""
        texts = _begin(prompts, settings, self.tokenizer)
        yield from self._write(texts, settings, fitted)
        return [self._generation(text, _Text(text.stream), settings) for text in texts]

    def _write(self, texts: Sequence[_Text], settings: GenerationSettings, fitted: Fitted) -> Iterator[tuple[int, str]]:
        """Write into `texts`, all at the same time, and yield the pieces."""
        prompts, samples = [text.prompt for text in texts], [text.sample for text in texts]
        self._announce(max(map(len, prompts)) + settings.max_new_tokens)
        ended: set[int] = set()
        tempering = fitted.tempering(settings.temperature, settings.temperature_offset, self.model.latent)
        plan = fitted.plan_weights() if settings.plan else None
        speculate = self._drafts.of(settings, prompts, self.model, self.eos_token_id, self._slots, tempering)
        with self._slots(ROUTED if plan else 1 if speculate else len(texts)) as decoder:
            if plan:
                tokens = chain.from_iterable(
                    planned_tokens(decoder, row, prompt, settings, self.eos_token_id, ended, self.model, plan)
                    for row, prompt in enumerate(prompts)
                )
            elif speculate:
                settings = replace(settings, speculate=speculate)
                rows = [
                    (decoder, row, prompts[row], settings, self.eos_token_id, samples[row], ended, tempering)
                    for row in range(len(texts))
                ]
                tokens = chain.from_iterable(starmap(speculated_tokens, rows))
            else:
                tokens = generate_tokens(decoder, prompts, settings, self.eos_token_id, samples, ended, tempering)
            while True:
                with torch.inference_mode():  # not across a yield: the caller's own code runs there
                    token = next(tokens, None)
                if token is None:
                    return
                text = texts[token.row]
                piece = self._add(text, token)
                if text.stream.stopped:
                    ended.add(token.row)
                if piece:
                    text.pieces.append(piece)
                    yield token.row, piece

    def _add(self, text: _Text, token: Token) -> str:
        """The piece of text that is decided with a token."""
        piece = ""
        if token.id is not None:
            text.tokens.append(token.id)
            text.drafted.append(token.drafted)
            if token.choice is not None:
                text.choices[len(text.tokens) - 1] = token.choice
            if token.logprob is not None:
                text.logprobs.append(self._logprob(token.id, token.logprob, token.top))
            piece = text.stream.push(token.id)
        if text.stream.stopped:
            text.stopped = "stop"
        elif token.stopped:
            text.stopped = token.stopped
            piece += text.stream.end()
        return piece

    def _logprob(self, id: int, logprob: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
        decode = self.tokenizer.decode
        return TokenLogprob(decode([id]), logprob, tuple((decode([other]), value) for other, value in top))

    def _generation(self, text: _Text, echo: _Text, settings: GenerationSettings) -> Generation:
        logprobs = None if settings.logprobs is None else [*echo.logprobs, *text.logprobs]
        tokens, drafted = [*echo.tokens, *text.tokens], [False] * len(echo.tokens) + text.drafted
        plan = None
        if settings.plan:
            candidates = sum(len(choice.candidates) for choice in text.choices.values())
            choices = {len(echo.tokens) + at: choice for at, choice in text.choices.items()}
            plan = Plan(len(choices), candidates, len(text.tokens) - sum(text.drafted), choices)
        return Generation("".join([*echo.pieces, *text.pieces]), tokens, logprobs, text.stopped, drafted, plan)

    def _echo(self, prompt: list[int], settings: GenerationSettings) -> _Text:
        """The prompt as the beginning of a text, with its log-probabilities where these are asked for."""
        echo = _Text(TextStream(self.tokenizer, []))
        if settings.echo:
            echo.tokens, echo.pieces = prompt, [self.tokenizer.decode(prompt)]
            if settings.logprobs is not None and prompt:
                echo.logprobs = [
                    self._logprob(id, line[id].item(), _top(line, settings.logprobs))
                    for id, line in zip(prompt, self._prompt_logprobs(prompt), strict=True)
                ]
        return echo

    def _prompt_logprobs(self, prompt: list[int]) -> Iterator[Tensor]:
        """(V,) for each token of a prompt; windows overlap by half, as in `score`."""
        document, known = [self.eos_token_id, *prompt[:-1]], 0
        with self._slots(1) as decoder:
            begin(decoder, 0)
            while known < len(document):
                start = max(0, known - decoder.window // 2)
                if known:
                    slide(decoder, 0)
                logits = decoder.read(0, document[start : start + decoder.window], every=True)
                yield from logits.float().log_softmax(-1)[known - start :]
                known = start + len(logits)

    def _search(self, prompt: list[int], settings: GenerationSettings) -> list[Generation]:
        echo = self._echo(prompt, settings)
        found = []
        with self._slots(settings.num_beams) as decoder:
            beams = search(decoder, prompt, settings, self.eos_token_id)
        for beam in beams:
            text = _Text(TextStream(self.tokenizer, prompt, settings.stop), stopped=beam.stopped)
            for token in beam.tokens:
                text.pieces.append(text.stream.push(token))
                text.tokens.append(token)
                text.drafted.append(False)
                if text.stream.stopped:
                    text.stopped = "stop"
                    break
            text.pieces.append(text.stream.end())
            if settings.logprobs is not None:
                lines = list(self._prompt_logprobs([*prompt, *text.tokens]))[len(prompt) :]
                text.logprobs = [
                    self._logprob(id, line[id].item(), _top(line, settings.logprobs))
                    for id, line in zip(text.tokens, lines, strict=True)
                ]
            found.append(self._generation(text, echo, settings))
        return found

    @contextmanager
    def _slots(self, count: int) -> Iterator[Decoder]:
        """A decoder of `count` slots that nobody else uses: several streams may take turns."""
        version = [(parameter.data_ptr(), parameter._version) for parameter in self.model.parameters()]
        if self._weights is None or version != self._version:
            self._weights, self._version, self._idle = Weights(self.model, self.precision), version, {}
        weights, decoder = self._weights, self._idle.pop(count, None) or self._weights.decoder(count)
        try:
            yield decoder
        finally:
            if weights is self._weights:
                self._idle = {count: decoder}

    def _announce(self, length: int) -> None:
        window, remembers = self.model.config.seq_length, self.model.config.memory_tokens
        if length >= window and not self._announced:
            self._announced = True
            warnings.warn(
                f"The text may grow beyond seq_length {window}: the model then goes on from its last tokens, at least "
                f"{max(1, window // 2)} of them{', and what its memory tokens hold' * bool(remembers)}.",
                stacklevel=4,
            )


def _begin(prompts: Sequence[list[int]], settings: GenerationSettings, tokenizer: Tokenizer) -> list[_Text]:
    """Empty texts: num_samples for each prompt in turn."""
    return [
        _Text(TextStream(tokenizer, prompt, settings.stop), prompt, sample)
        for prompt in prompts
        for sample in range(settings.num_samples)
    ]


def _top(logprobs: Tensor, most: int) -> list[tuple[int, float]]:
    """The likeliest tokens of (V,), the likeliest first."""
    top = logprobs.topk(min(most, len(logprobs)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
