"""Rollouts: steps of the transition from the states of a text, through the trunk's last block."""

from typing import NamedTuple

from torch import Tensor

from ..attention import attention_mask
from ..tensors import States
from .transition import Transition
from .trunk import KeysAndValues, LastBlock, Trunk

STATE_GRADIENT = 0.5  # of what each step passes back into the state it starts from (EfficientZero, arXiv 2111.00210)


class RolloutContext(NamedTuple):
    """The text before a rollout. All of it is detached: keys, values and memory send the trunk no gradient."""

    hidden: Tensor  # (B, S, D): its final states
    before_last: Tensor  # (B, S, D): what the trunk's last block read
    embeddings: Tensor  # (B, S, D)
    allowed: Tensor  # (1 or B, 1, S, S): what each token may attend to, as in the trunk

    @classmethod
    def read(
        cls,
        trunk: Trunk,
        input_ids: Tensor,
        states: States,
        segment_ids: Tensor | None = None,
        rows: Tensor | slice = slice(None),
    ) -> "RolloutContext":
        """The context of `rows` of texts input_ids (B, S); `states` are what the trunk made of them with the same
        segment_ids."""
        length = input_ids.shape[1]
        segments = None if segment_ids is None else segment_ids[rows]
        return cls(
            states.final[rows].detach(),
            states.before_last[rows].detach(),
            trunk.tokens(input_ids[rows]).detach(),
            attention_mask(trunk.causal_mask[:length, :length], segments),
        )


class Rollout:
    """Steps from the states of a text: at one column or at many side by side, from `start` on, or at any `columns`
    (N,), of which several may be the same."""

    def __init__(
        self,
        transition: Transition,
        trunk: Trunk,
        context: RolloutContext,
        start: int = 0,
        columns: Tensor | None = None,
    ):
        self.transition, self.last_block, self.start, self.columns = transition, LastBlock(trunk), start, columns
        self.allowed = context.allowed
        continues = context.allowed.diagonal(-1, dim1=-2, dim2=-1)[:, 0]
        self.slots = transition.memory(context.hidden, context.embeddings, continues)
        self.keys, self.values = self.last_block.keys_and_values(context.before_last)
        self.steps: list[KeysAndValues] = []

    def step(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """States (B, N, D), one for each column, true ones or those of the last step, and the embeddings of the tokens
        that follow them -> the next states. N must not grow from step to step."""
        end, rotary, ahead = self.start + hidden.shape[1], self.last_block.rotary, len(self.steps) + 1
        if self.columns is None:
            allowed = self.allowed[..., self.start : end, :end]
            rotations = None if rotary is None else rotary(hidden.shape[1], self.start + ahead)
        else:
            end = self.keys.shape[2]
            allowed = self.allowed[..., self.columns, :]
            rotations = None if rotary is None else rotary.at(self.columns + ahead, end + ahead)
        x = self.transition(hidden, embeddings, self.slots[:, :end], allowed)
        text = self.keys[:, :, :end], self.values[:, :, :end]
        return self.last_block(x, rotations, text, allowed, self.steps)


def roll_out(rollout: Rollout, hidden: Tensor, embeddings: Tensor, depth: int) -> list[Tensor]:
    """Chain `depth` steps along the tokens of the text itself.

    hidden (B, T, D): h_0 ... h_{T-1}; embeddings (B, T, D): those of x_0 ... x_{T-1}. Item i - 1 of the result is
    (B, T - i, D): at column t the prediction of h_{t+i} from h_t and x_{t+1} ... x_{t+i}. A rollout does not stop where
    a segment ends: see `remaining_labels` in core.py.
    """
    states = []
    for _ in range(depth):
        hidden, embeddings = hidden[:, :-1], embeddings[:, 1:]
        hidden = rollout.step(_scale_gradient(hidden, STATE_GRADIENT), embeddings)
        states.append(hidden)
    return states


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by `factor`."""
    return x * factor + x.detach() * (1.0 - factor)
