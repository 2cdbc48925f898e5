"""Writing with a plan: greedy, but where the next token is uncertain the router chooses among several.

A choice commits the candidate and what the model would have written after it anyway, as far as that was verified, so a
choice is a round of drafts too. With weights of 0 the text is the greedy one, to the token.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...transformer import TransformerLM
from ..decoder import Decoder
from ..drafts.speculation import History
from ..fitted import PlanWeights
from ..generate import Stopped, Token, top_logprobs
from ..settings import GenerationSettings
from .choice import Choice
from .foresight import ROLLED_OUT, Forecaster
from .router import Branches, candidates_of, read_branches, route


def entropy(logits: Tensor) -> Tensor:
    """logits (..., V) -> (...,), in nats."""
    log_p = logits.float().log_softmax(-1)
    return -torch.linalg.vecdot(log_p.exp(), log_p)


class Round(NamedTuple):
    """What was read behind the text, and which of it is written."""

    tokens: list[int]
    lines: Tensor  # (n, V): the model's own logits of these tokens
    choice: Choice | None  # the first token's; None where drafts alone were made
    branches: Branches
    row: int  # of these, the one that is written


class Planner:
    """A text that is planned, in the slots of a decoder; what is decided and what is read go on together."""

    def __init__(
        self,
        decoder: Decoder,
        model: TransformerLM,
        weights: PlanWeights,
        settings: GenerationSettings,
        eos: int | None,
    ):
        """eos: the token that ends the text, which is no candidate; None where none does."""
        self.decoder, self.weights, self.settings, self.eos = decoder, weights, settings, eos
        self.forecaster = Forecaster(model, decoder)
        self.foreseen = decoder.draft_length if weights.foresight == "drafter" else ROLLED_OUT
        self.synced = 0  # tokens of slot 0 that all slots hold

    def begin(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Like read, of a new window."""
        self.decoder.lengths[:], self.synced = [0] * len(self.decoder.lengths), 0
        self.forecaster.forget()
        return self.read(tokens)

    def read(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Append tokens. Returns the logits (V,) and the state (D,) after the last."""
        line = self.decoder.read(0, tokens)[0].clone()
        self.forecaster.read(tokens, self.decoder.hidden)
        return line, self.decoder.hidden[-1].clone()

    def plan(self, line: Tensor, hidden: Tensor, scores: Tensor, history: History) -> Round | None:
        """What to write after logits `line` (V,) of state hidden (D,), which became `scores` (V,); None: the likeliest
        token alone."""
        best = int(scores.argmax())
        if best == self.eos:
            return None
        choice, weights = None, self.weights
        if float(entropy(line)) > weights.threshold:
            candidates = candidates_of(scores, without=self.eos)
            choice, branches, row = route(
                self.decoder, self.forecaster, hidden, candidates, weights, history, self.synced
            )
            token = choice.candidates[choice.chosen].token
        elif self.settings.speculate:
            one = torch.tensor([best], device=line.device)
            drafts = self.forecaster.foresee(weights.foresight, hidden, one).tokens
            branches = read_branches(self.decoder, torch.cat([one[None], drafts], 1), history, self.synced)
            row, token = 0, best
        else:
            return None
        # What the model would write stands up to the next place at which it is to plan.
        certain = (entropy(branches.logits[row]) <= weights.threshold).long().cumprod(0).sum()
        stood = min(int(branches.stood[row]), int(certain))
        tokens = [token, *branches.following[row, :stood].tolist()]
        return Round(tokens, torch.cat([line[None], branches.logits[row, :stood]]), choice, branches, row)

    def commit(self, round: Round) -> tuple[Tensor, Tensor]:
        """Keep what a round wrote, in all slots. Returns the logits (V,) and the state (D,) after it."""
        decoder, count = self.decoder, len(round.tokens)
        start = decoder.lengths[0] - self.foreseen - 1
        decoder.lengths[:] = [start + count] * len(decoder.lengths)
        if len(round.branches.logits) > 1:
            decoder.reorder([round.row] * len(decoder.lengths), start)
            self.synced = start + count
        hidden = round.branches.hidden[round.row, :count]
        self.forecaster.read(round.tokens, hidden)
        return round.branches.logits[round.row, count - 1].clone(), hidden[-1].clone()


def planned_tokens(
    decoder: Decoder,
    row: int,
    prompt: Sequence[int],
    settings: GenerationSettings,
    eos_token_id: int,
    ended: set[int],
    model: TransformerLM,
    weights: PlanWeights,
) -> Iterator[Token]:
    """Yield the tokens that continue one prompt, whose tokens have the number `row`, at temperature 0. The decoder has
    ROUTED slots."""
    document, written = [eos_token_id, *prompt], 0
    eos = eos_token_id if settings.stop_at_eos else None
    planner = Planner(decoder, model, weights, settings, eos)
    line, hidden = planner.begin(document[-decoder.window :])
    history = History(settings, prompt, settings.max_new_tokens + planner.foreseen + 2, line)
    while True:
        scores = history.scores(line)
        exhausted = bool(settings.no_repeat_ngram) and bool(history.forbidden().all())
        room = decoder.window - decoder.lengths[0]
        fits = min(room, settings.max_new_tokens - written) > planner.foreseen + 1 and not exhausted
        round = planner.plan(line, hidden, scores, history) if fits else None
        tokens, lines = ([int(scores.argmax())], line[None]) if round is None else (round.tokens, round.lines)
        for place, token in enumerate(tokens):
            choice = round.choice if round is not None and place == 0 else None
            made = Token(row, token, None, drafted=place > 0, choice=choice)
            if settings.logprobs is not None:
                made = made._replace(**top_logprobs(lines[place].float().log_softmax(-1), token, settings.logprobs))
            written += 1
            stopped: Stopped | None = None
            if exhausted:
                made, stopped = Token(row, None, "exhausted"), "exhausted"
            elif token == eos:
                made, stopped = made._replace(id=None, stopped="eos"), "eos"
            elif written == settings.max_new_tokens:
                made, stopped = made._replace(stopped="length"), "length"
            if stopped:
                ended.add(row)
            yield made
            if row in ended:
                return
            history.write(0, torch.tensor(token, device=line.device))
            history.length += 1
        document += tokens
        if round is not None:
            line, hidden = planner.commit(round)
        elif room == 0:
            line, hidden = planner.begin(document[-max(1, decoder.window // 2) :])
        else:
            line, hidden = planner.read(tokens)
