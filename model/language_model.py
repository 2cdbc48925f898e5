"""The object a user holds: weights, configuration and tokenizer from one file, and what can be asked of them.

Prompts and scored texts are read after an end-of-text token, as every document is in training, so that their first
token is predicted too. Text that looks like a special token is plain text.
"""

import os
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from .decoding.decoder import Precision
from .decoding.fitted import AdaptiveTemperature, Fitted
from .decoding.forecast import forecast
from .decoding.settings import GenerationSettings, Settings
from .decoding.writing import Generation, Writer
from .export import Exported, export
from .fitting import DrafterFit, PlanFit, fit_drafter, fit_plan, fit_temperature
from .fitting.development import document_rows
from .loss import IGNORE_INDEX
from .memory import document_nll
from .snapshot import Snapshot, write
from .snapshot.tokenizer import panics_as_errors, read_tokenizer
from .transformer import TransformerLM


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text of n tokens."""

    mean_nll: float  # nats per token
    token_nll: Tensor  # (n,) fp32, nats
    tokens: list[int]  # the n token ids


@dataclass(frozen=True)
class TokenForecast:
    """What a model expects after one token of a text, before it reads on. An evaluation's event holds these fields."""

    token: str
    guesses: list[list[tuple[str, float]]]  # [k]: the likeliest tokens k + 1 places on, and their probabilities
    expected_nll: dict[int, float]  # by horizon K: the mean nats that the next K tokens are expected to have
    realised_nll: dict[int, float]  # the mean nats that they had, where enough of the text is left
    drafted: list[str]  # the next tokens as the drafter writes them; empty without one, and after a text's first token
    accepted: int  # how many of these, from the first on, the model itself would write at temperature 0


class LanguageModel:
    """A TransformerLM that reads and writes text. `tokenizer_json` is the contents of a tokenizer.json, `preset` and
    `progress` are those of its snapshot.

    Raises ValueError when that cannot be read or knows more ids than the model.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer_json: str,
        eos_token_id: int,
        preset: Mapping[str, Any] | None = None,
        progress: Mapping[str, Any] | None = None,
        precision: Precision | Literal["auto"] = "auto",
    ):
        self.model = model
        self.eos_token_id = eos_token_id
        self.preset, self.progress = dict(preset or {}), dict(progress or {})
        self.fitted = Fitted()
        self.tokenizer = read_tokenizer(tokenizer_json)
        num_ids = max(self.tokenizer.get_vocab().values()) + 1
        if num_ids > model.vocab_size or not 0 <= eos_token_id < model.vocab_size:
            raise ValueError(
                f"the tokenizer's {num_ids} ids or the end-of-text id {eos_token_id} do not fit the model's vocabulary "
                f"of {model.vocab_size}; use the tokenizer it was trained with."
            )
        self._writer = Writer(model, self.tokenizer, eos_token_id, _available(precision, model))

    def encode(self, text: str) -> list[int]:
        """Token ids; an unpaired surrogate, which is not text, becomes U+FFFD.

        Raises ValueError for a text on which the tokenizer fails.
        """
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with panics_as_errors():
            return self.tokenizer.encode(whole, add_special_tokens=False).ids

    @overload
    def generate(self, prompt: str, max_new_tokens: int = 64, **settings: Unpack[Settings]) -> Generation: ...
    @overload
    def generate(
        self, prompt: list[str], max_new_tokens: int = 64, **settings: Unpack[Settings]
    ) -> list[Generation]: ...
    def generate(
        self, prompt: str | list[str], max_new_tokens: int = 64, **settings: Unpack[Settings]
    ) -> Generation | list[Generation]:
        """The continuation of a prompt, without the prompt; of a list, one for each, in order.

        The settings are those of GenerationSettings, by name: temperature (0: greedy), top_p, top_k, min_p,
        repetition_penalty, no_repeat_ngram, stop, seed, stop_at_eos, logprobs, num_samples, echo, logits_processors,
        num_beams, length_penalty, speculate, temperature_offset, plan. With num_samples = n > 1 there are n texts for
        each prompt, one after the other.

        A Generation is a str with `tokens`, `logprobs`, `drafted`, `plan` and `stopped`. Raises ValueError for a
        setting that does not exist or makes no sense, and for an empty list.
        """
        checked = GenerationSettings.of(max_new_tokens, settings)
        with _evaluating(self.model), panics_as_errors():
            texts = self._writer.generate(_encode_all(self, prompt), checked, self.fitted)
        generations = [generation for some in texts for generation in some]
        return generations[0] if isinstance(prompt, str) and checked.num_samples == 1 else generations

    @overload
    def stream(
        self, prompt: str, max_new_tokens: int = 64, **settings: Unpack[Settings]
    ) -> Generator[str, None, Generation]: ...
    @overload
    def stream(
        self, prompt: list[str], max_new_tokens: int = 64, **settings: Unpack[Settings]
    ) -> Generator[tuple[int, str], None, list[Generation]]: ...
    def stream(
        self, prompt: str | list[str], max_new_tokens: int = 64, **settings: Unpack[Settings]
    ) -> Generator[Any, None, Any]:
        """Like `generate`, but yields text as soon as it is decided, in whole characters; of a list, with the number
        of the prompt that it continues. What `generate` returns is the value that the generator returns at its end.
        Beam search, echo, logprobs and several samples are for `generate`."""
        checked = GenerationSettings.of(max_new_tokens, settings)
        for name in ("num_beams", "num_samples", "echo", "logprobs"):
            if getattr(checked, name) not in (1, False, None):
                raise ValueError(
                    f"{name} is {getattr(checked, name)!r}, which text as it is decided cannot have; use generate."
                )
        pieces = self._writer.stream(_encode_all(self, prompt), checked, self.fitted)
        return _streamed(self.model, pieces, isinstance(prompt, str))

    @torch.no_grad()
    def score(self, text: str) -> Score:
        """How well the model predicts `text`. Raises ValueError for a text without tokens.

        A text longer than seq_length is read in windows that overlap by half, so that every token after the first
        window has at least half a window of context. With memory tokens, what lies before a window is summed up.
        """
        tokens = self.encode(text)
        if not tokens:
            raise ValueError("the text to score is empty; give at least one character.")
        seq_length = self.model.config.seq_length
        sequence = torch.tensor([self.eos_token_id, *tokens], device=self.model.tokens.weight.device)
        token_nll = torch.empty(len(tokens))
        with _evaluating(self.model):
            scored = 0
            if self.model.memory is not None:
                token_nll, scored = document_nll(self.model, sequence).cpu(), len(tokens)
            while scored < len(tokens):
                start = 0 if scored == 0 else scored - seq_length // 2
                stop = min(start + seq_length, len(tokens))
                labels = sequence[start + 1 : stop + 1].clone()
                labels[: scored - start] = IGNORE_INDEX
                output = self.model(sequence[None, start:stop], labels[None])
                token_nll[scored:stop] = output.token_nll[0, scored - start :].cpu()
                scored = stop
        return Score(token_nll.mean().item(), token_nll, tokens)

    def look_ahead(self, text: str, depth: int = 3, best: int = 3) -> list[TokenForecast]:
        """What the model expects after the end-of-text token before `text` and after each token of it: the `best`
        tokens for each of the next 1 + `depth` places, and how hard the next tokens will be.

        The LM head guesses the first place, the transition the others. Without a transition there is only the first
        place, and without a value no expected NLL. Raises ValueError for a text without tokens, or with more than
        seq_length - 1.
        """
        tokens, most = self.encode(text), self.model.config.seq_length - 1
        if not 0 < len(tokens) <= most:
            raise ValueError(f"the text has {len(tokens)} tokens; give one of at least 1 and at most {most}.")
        return self.look_ahead_ids([self.eos_token_id, *tokens], depth, best)

    def look_ahead_ids(
        self, token_ids: list[int], depth: int = 3, best: int = 3, draft_after: Container[int] | None = None
    ) -> list[TokenForecast]:
        """Like look_ahead, after each of `token_ids`; the first is usually the end-of-text token. The drafter is asked
        after those with the numbers draft_after alone; None: after all."""
        ids = torch.tensor(token_ids, device=self.model.tokens.weight.device)
        with _evaluating(self.model):
            result = forecast(self.model, ids, depth, best, draft_after)
        with panics_as_errors():
            shown = {*token_ids, *result.guesses.flatten().tolist(), *chain.from_iterable(result.drafts)}
            pieces = {id: self.tokenizer.decode([id]) for id in shown}
        forecasts = []
        for at, token in enumerate(token_ids):
            places = zip(result.guesses[at].tolist(), result.probabilities[at].tolist(), strict=True)
            guesses = [[(pieces[id], share) for id, share in zip(*place, strict=True)] for place in places]
            expected = dict(zip(result.horizons, result.expected[at].tolist(), strict=True))
            realised = zip(result.horizons, result.realised[at].tolist(), result.known[at].tolist(), strict=True)
            realised = {horizon: nll for horizon, nll, known in realised if known}
            drafted = [pieces[id] for id in result.drafts[at]]
            forecasts.append(TokenForecast(pieces[token], guesses, expected, realised, drafted, result.accepted[at]))
        return forecasts

    def save(self, path: str | os.PathLike) -> None:
        """Write a snapshot, which `load` reads and a run continues. Raises SnapshotError, a ValueError."""
        write(path, _snapshot(self))

    def export(
        self, target: str | os.PathLike, dtype: str = "float32", licences: Mapping[str, str] | None = None
    ) -> Exported:
        """Write the model for other programs: a folder that transformers opens or, where `target` ends in .gguf, a file
        for llama.cpp.

        dtype: "float32", "float16" or "bfloat16"; in a GGUF file "q8_0" too. licences: those of the sources, by name,
        for the model card. Raises ExportError, a ValueError, where the other program has no such model, `target` exists
        already, or it cannot be written; nothing is then left on the disk.
        """
        return export(_snapshot(self), target, dtype, licences)

    def fit_temperature(self, texts: Iterable[str]) -> AdaptiveTemperature:
        """Fit temperature="adaptive" to texts, each a document that the model was not trained on; some 10,000 tokens
        are enough. `save` keeps it. Raises ValueError for too little text."""
        with _evaluating(self.model), panics_as_errors():
            fit = fit_temperature(self.model, _rows(self, texts))
        self.fitted = replace(self.fitted, temperature=fit)
        return fit

    def fit_plan(self, texts: Iterable[str]) -> PlanFit:
        """Fit plan=True to texts, each a document that the model was not trained on; some 20,000 tokens are enough.
        `save` keeps its `weights`. Raises ValueError for too little text, and for a model without a drafter and
        without a transition."""
        with _evaluating(self.model), panics_as_errors():
            fit = fit_plan(self.model, _rows(self, texts))
        self.fitted = replace(self.fitted, plan=fit.weights)
        return fit

    def fit_drafter(self, texts: Iterable[str], tokens: int = 2_000_000) -> DrafterFit:
        """Train a drafter, this model's or a new one, on `tokens` tokens of texts, each a document; the rest of the
        model stays as it is. `save` keeps it. What was fitted for planning with another drafter is dropped. Raises
        ValueError for too little text."""
        with _evaluating(self.model), panics_as_errors():
            rows = _rows(self, texts)
        fit = fit_drafter(self.model, rows, tokens)
        self.preset = self.preset | {"auxiliary": (self.preset.get("auxiliary") or {}) | fit.auxiliary}
        self.fitted = replace(self.fitted, plan=None)
        self._writer = Writer(self.model, self.tokenizer, self.eos_token_id, self._writer.precision)  # forgets timings
        return fit


def _encode_all(lm: LanguageModel, prompt: str | list[str]) -> list[list[int]]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty; give at least one text.")
    if not all(isinstance(text, str) for text in prompts):
        raise ValueError("a prompt is no text; give a string, or a list of strings.")
    return [lm.encode(text) for text in prompts]


def _rows(lm: LanguageModel, texts: Iterable[str]) -> list[Tensor]:
    """Of documents, to fit by."""
    return document_rows(texts, lm.encode, lm.eos_token_id, lm.model.config.seq_length)


def _streamed(
    model: TransformerLM, pieces: Generator[tuple[int, str], None, list[Generation]], single: bool
) -> Generator[Any, None, Any]:
    with _evaluating(model), panics_as_errors():
        if not single:
            return (yield from pieces)
        while True:
            try:
                yield next(pieces)[1]
            except StopIteration as end:
                return end.value[0]


@contextmanager
def _evaluating(model: TransformerLM) -> Iterator[None]:
    """Turns dropout off inside: the model may be in the middle of its training."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _available(precision: str, model: TransformerLM) -> Precision:
    """The precision of the weights that are read while text is written. Raises ValueError for one that is unknown."""
    if precision == "auto":
        on_gpu = model.final_norm.weight.device.type == "cuda"
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if precision in ("fp32", "bf16", "int8"):
        return precision
    raise ValueError(f'precision is {precision!r}; give "auto", "fp32", "bf16" or "int8".')


def _snapshot(lm: LanguageModel) -> Snapshot:
    config = lm.model.config.model_dump() | {"vocab_size": lm.model.vocab_size, "eos_token_id": lm.eos_token_id}
    fitted = lm.fitted.values()
    return Snapshot(lm.model.state_dict(), config, lm.tokenizer.to_str(), lm.preset, lm.progress, fitted)
