"""The object a user holds: weights, configuration and tokenizer from one file, and what can be asked of them.

Prompts and scored texts stand behind one end-of-text token, as every document does in training, so that their first
token is predicted too. Text that looks like a special token is plain text.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

from .config import ModelConfig
from .decoding.generate import generate_tokens
from .decoding.sampling import SamplingOptions
from .latent import foresee
from .loss import IGNORE_INDEX
from .snapshot import file
from .transformer import TransformerLM


@dataclass(frozen=True)
class Score:
    mean_nll: float  # nats per token
    token_nll: Tensor  # (n,) fp32, nats
    tokens: list[int]  # the n token ids


@dataclass(frozen=True)
class Ahead:
    """What a model with a latent core says after one token, before it has read on."""

    token: str
    guesses: list[list[tuple[str, float]]]  # [k]: the likeliest tokens k + 1 places on, and their probabilities
    expected_nll: dict[int, float]  # by horizon K: mean nats of the next K tokens
    realised_nll: dict[int, float]  # the same as they came, where enough of the text is left to tell


class LanguageModel:
    """A TransformerLM that reads and writes text. `tokenizer_json` is the contents of a tokenizer.json.

    Raises ValueError when that cannot be read or knows more ids than the model.
    """

    def __init__(self, model: TransformerLM, tokenizer_json: str, eos_token_id: int):
        self.model = model
        self.eos_token_id = eos_token_id
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises nothing more specific
            raise ValueError("the tokenizer cannot be read; give the contents of a tokenizer.json.") from error
        num_ids = max(self.tokenizer.get_vocab().values()) + 1
        if num_ids > model.vocab_size or not 0 <= eos_token_id < model.vocab_size:
            raise ValueError(
                f"the tokenizer's {num_ids} ids or the end-of-text id {eos_token_id} do not fit the model's vocabulary "
                f"of {model.vocab_size}; use the tokenizer it was trained with."
            )
        # A tokenizer.json may carry settings of the task it was made for; each of them would change texts silently.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        """Token ids; halves of surrogate pairs, which are no text, become U+FFFD."""
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.tokenizer.encode(whole, add_special_tokens=False).ids

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 0.9,
        no_repeat_ngram: int = 0,
        seed: int | None = None,
        stop_at_eos: bool = True,
    ) -> str:
        """The continuation of `prompt`, without the prompt. Raises ValueError for an argument outside its range.

        temperature 0 is greedy; no_repeat_ngram = n forbids n tokens in a row that occurred before, prompt included.
        """
        return "".join(self.stream(prompt, max_new_tokens, temperature, top_p, no_repeat_ngram, seed, stop_at_eos))

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 0.9,
        no_repeat_ngram: int = 0,
        seed: int | None = None,
        stop_at_eos: bool = True,
    ) -> Iterator[str]:
        """As `generate`, but yields text as it is decided, in whole characters."""
        options = SamplingOptions(max_new_tokens, temperature, top_p, no_repeat_ngram, seed, stop_at_eos)
        return self._pieces(prompt, options)  # a plain function up to here: bad arguments raise at once

    def _pieces(self, prompt: str, options: SamplingOptions) -> Iterator[str]:
        prompt_ids = self.encode(prompt)
        # It knows the prompt, so that spaces join correctly; U+FFFD at the end it would take for half a character.
        known = [] if self.tokenizer.decode(prompt_ids).endswith("\N{REPLACEMENT CHARACTER}") else prompt_ids
        decoder = DecodeStream(ids=known, skip_special_tokens=True)
        with self._evaluating():
            for token in generate_tokens(self.model, prompt_ids, options, self.eos_token_id):
                piece = decoder.step(self.tokenizer, token)
                if piece:
                    yield piece

    @torch.no_grad()
    def score(self, text: str) -> Score:
        """How well the model predicts `text`. Raises ValueError for a text without tokens.

        A text longer than the model's window is read in windows that overlap by half, so that every token but the first
        ones has at least half a window of context.
        """
        tokens = self.encode(text)
        if not tokens:
            raise ValueError("the text to score is empty; give at least one character.")
        seq_length = self.model.config.seq_length
        sequence = torch.tensor([self.eos_token_id, *tokens], device=self.model.tokens.weight.device)
        token_nll = torch.empty(len(tokens))
        with self._evaluating():
            scored = 0
            while scored < len(tokens):
                start = 0 if scored == 0 else scored - seq_length // 2
                stop = min(start + seq_length, len(tokens))
                labels = sequence[start + 1 : stop + 1].clone()
                labels[: scored - start] = IGNORE_INDEX
                output = self.model(sequence[None, start:stop], labels[None])
                token_nll[scored:stop] = output.token_nll[0, scored - start :].cpu()
                scored = stop
        return Score(token_nll.mean().item(), token_nll, tokens)

    def look_ahead(self, text: str, depth: int = 3, best: int = 3) -> list[Ahead]:
        """What the model expects after the end-of-text token that stands before `text`, and after each token of it, the
        last too: the `best` tokens for each of the next 1 + `depth` places, of which the transition predicts all but
        the first, and how hard the next tokens will be.

        Parts that the model was trained without leave theirs empty. Raises ValueError for a text without tokens, or
        with so many that they and the end-of-text token do not fit a row.
        """
        tokens, most = self.encode(text), self.model.config.seq_length - 1
        if not 0 < len(tokens) <= most:
            raise ValueError(f"the text has {len(tokens)} tokens; give one of at least 1 and at most {most}.")
        return self.look_ahead_at([self.eos_token_id, *tokens], depth, best)

    def look_ahead_at(self, sequence: list[int], depth: int = 3, best: int = 3) -> list[Ahead]:
        """The same for token ids, after each of them; the first is usually the end-of-text token."""
        with self._evaluating():
            said = foresee(self.model, torch.tensor(sequence, device=self.model.tokens.weight.device), depth, best)
        pieces = {id: self.tokenizer.decode([id]) for id in {*sequence, *said.guesses.flatten().tolist()}}
        horizons = self.model.latent.value_head.horizons if said.expected.shape[1] else ()
        return [
            Ahead(
                pieces[sequence[at]],
                [
                    [(pieces[id], probability) for id, probability in zip(*place, strict=True)]
                    for place in zip(said.guesses[at].tolist(), said.probabilities[at].tolist(), strict=True)
                ],
                dict(zip(horizons, said.expected[at].tolist(), strict=True)),
                {
                    horizon: nll
                    for horizon, nll, known in zip(
                        horizons, said.realised[at].tolist(), said.known[at].tolist(), strict=True
                    )
                    if known
                },
            )
            for at in range(len(sequence))
        ]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Dropout off, and as it was afterwards: the model may be in the middle of its training."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


def load(path: str | os.PathLike, device: str | torch.device | None = None) -> LanguageModel:
    """The language model of a snapshot, in fp32, ready to generate; device None = CUDA if there is one, else the CPU.

    Raises SnapshotError when the file cannot be trusted or does not hold a whole model.
    """
    path = Path(path)
    contents = file.read(path)
    if contents.config is None or contents.tokenizer is None:
        raise file.SnapshotError(
            f"{path}: holds weights only, without configuration and tokenizer; give a checkpoint that training wrote."
        )
    try:
        config = dict(contents.config)
        vocab_size, eos_token_id = config.pop("vocab_size"), config.pop("eos_token_id")
        model = TransformerLM(ModelConfig(**config), vocab_size, contents.auxiliary())
    except (KeyError, TypeError, ValueError) as error:
        raise file.SnapshotError(
            f"{path}: its configuration does not describe a model of this version; use the version that wrote it."
        ) from error
    report = file.restore(model, contents.model)
    if report.new or report.left_out:
        raise file.SnapshotError(f"{path}: weights and configuration do not match. {report.summary()}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return LanguageModel(model.to(device).eval(), contents.tokenizer, eos_token_id)
    except ValueError as error:
        raise file.SnapshotError(f"{path}: {error}") from error
