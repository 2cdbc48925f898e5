"""What the lookahead core foresees of candidates for the next token: how a text would go on after each, how likely that
is, and how hard what comes then would be. The trunk reads nothing for it.

Three ways: the drafter makes the states of all places at once; rollouts of the transition make them one after the
other, each along the likeliest token of the one before; a path is such a rollout, judged as MuZero judges one, by the
losses of its tokens and the value of the state where it ends (LookaheadCore.path_value).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...latent import expected_nll
from ...latent.core import LookaheadCore
from ...latent.transition import Transition
from ...latent.trunk import KeysAndValues, LastBlock
from ...transformer import TransformerLM
from ..decoder import Decoder
from ..fitted import Foresight

ROLLED_OUT = 3  # steps of a rollout


class Foreseen(NamedTuple):
    """Of m candidates."""

    tokens: Tensor  # (m, K) int64: what would follow each
    continuation: Tensor  # (m,) nats: the mean log-probability of these
    # (m,) nats: the mean loss expected after the candidate, after the rollout, or along the path and after it; 0
    # without a value head
    value: Tensor


class Memory:
    """The transition's slots of a text that grows; what is read is turned into slots when they are asked for."""

    def __init__(self, transition: Transition, model: TransformerLM):
        self._transition, self._model = transition, model
        self._tokens: list[int] = []
        self._states: list[Tensor] = []
        self._slots: Tensor | None = None

    def read(self, tokens: Sequence[int], hidden: Tensor) -> None:
        """The text has these tokens more, after which the states are hidden (n, D)."""
        self._tokens += tokens
        self._states.append(hidden.to(self._transition.up.weight.dtype, copy=True))

    def slots(self) -> Tensor:
        """(1, S, 2 * width), S being all tokens of the text."""
        known = 0 if self._slots is None else 1  # the newest token that has a slot is a key's beginning
        if len(self._tokens) > known:
            states = torch.cat(self._states)
            ids = torch.tensor(self._tokens, device=states.device)
            continues = torch.ones(1, len(ids) - 1, dtype=torch.bool, device=states.device)
            embeddings = self._model.tokens(ids).to(states.dtype)
            new = self._transition.memory(states[None], embeddings[None], continues)[:, known:]
            self._slots = new if self._slots is None else torch.cat([self._slots, new], dim=1)
            self._tokens, self._states = self._tokens[-1:], [states[-1:]]
        assert self._slots is not None, "nothing was read"
        return self._slots


class EndRollout:
    """Steps of the transition from the end of a text, for several candidates side by side."""

    def __init__(self, transition: Transition, model: TransformerLM, slots: Tensor, text: KeysAndValues):
        self._transition, self._last_block, self._slots = transition, LastBlock(model), slots
        self._text = text[0].to(slots.dtype), text[1].to(slots.dtype)
        self._allowed = torch.ones(1, 1, 1, slots.shape[1], dtype=torch.bool, device=slots.device)
        self._steps: list[KeysAndValues] = []

    def step(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """States and the embeddings of the tokens that follow them, both (1, m, D) -> the next states."""
        count, position = hidden.shape[1], self._slots.shape[1] + len(self._steps)
        rotary = self._last_block.rotary
        places = torch.full((count,), position, device=hidden.device)
        rotations = None if rotary is None else rotary.at(places, position + 1)
        x = self._transition(hidden, embeddings, self._slots, self._allowed)
        return self._last_block(x, rotations, self._text, self._allowed, self._steps)


class Forecaster:
    """Foresees what follows the text in slot 0 of a decoder."""

    def __init__(self, model: TransformerLM, decoder: Decoder):
        core = model.latent
        assert core is not None
        self.model, self.decoder, self.core = model, decoder, core
        self.memory: Memory | None = None
        self.forget()

    def forget(self) -> None:
        """A text begins."""
        self.memory = None if self.core.transition is None else Memory(self.core.transition, self.model)

    def read(self, tokens: Sequence[int], hidden: Tensor) -> None:
        """The text has these tokens more, after which the decoder's states are hidden (n, D)."""
        if self.memory is not None:
            self.memory.read(tokens, hidden)

    def foresee(self, way: Foresight, hidden: Tensor, candidates: Tensor) -> Foreseen:
        """Of candidates (m,) for the token after state hidden (D,)."""
        core, model = self.core, self.model
        embeddings = model.tokens(candidates)[None].float()
        hidden = hidden.float().expand(1, len(candidates), -1)
        rollout = None
        if core.transition is not None and self.memory is not None:
            slots = self.memory.slots()[:, : self.decoder.lengths[0]]
            rollout = EndRollout(core.transition, model, slots, self.decoder.last_block(0))
        if way != "drafter":
            assert rollout is not None
            tokens, nats, predicted = [], [], hidden
            for step in range(ROLLED_OUT):
                predicted = rollout.step(predicted, embeddings)
                best = model.logits(predicted[0]).log_softmax(-1).max(-1)
                tokens.append(best.indices)
                nats.append(best.values)
                if step < ROLLED_OUT - 1:
                    embeddings = model.tokens(best.indices)[None].float()
        else:
            tokens, nats = drafted(core, model, self.decoder.last_block(0), hidden, candidates)
            predicted = None if rollout is None or core.value_head is None else rollout.step(hidden, embeddings)
        mean = torch.stack(nats).mean(0)
        if core.value_head is None or predicted is None:
            return Foreseen(torch.stack(tokens, 1), mean, torch.zeros_like(mean))
        if way == "path":
            q = core.path_value(-torch.stack(nats, 1), predicted[0])[:, 0]
            return Foreseen(torch.stack(tokens, 1), mean, q / (ROLLED_OUT + core.value_head.horizons[0]))
        return Foreseen(torch.stack(tokens, 1), mean, expected_nll(core.value(predicted[0]))[:, 0])


def drafted(
    core: LookaheadCore, model: TransformerLM, text: KeysAndValues, hidden: Tensor, candidates: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """By place, the drafter's likeliest tokens (m,) after each candidate and their log-probabilities (m,); hidden
    (1, m, D)."""
    drafter, count = core.drafter, len(candidates)
    assert drafter is not None
    position, rotary = text[0].shape[2], model.rotary
    places = torch.full((count,), position, device=candidates.device)
    rotations = None if rotary is None else rotary.at(places, position + 1)
    states = drafter(hidden, model.tokens(candidates)[None].float(), text, None, rotations)[:, 0]
    logits = model.logits(states.flatten(0, 1)).unflatten(0, (drafter.length, count))
    tokens, nats, previous = [], [], candidates
    for line in logits:
        markov = F.linear(drafter.before(previous), drafter.after.weight[: model.vocab_size])
        best = (line + markov).log_softmax(-1).max(-1)
        tokens.append(best.indices)
        nats.append(best.values)
        previous = best.indices
    return tokens, nats
