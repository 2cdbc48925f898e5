"""What a model says at each token of a text, before it has read on: which tokens come, and how hard the next ones are.

The steps ahead follow the model's own best guesses, so nothing here uses a token that comes later; what really came is
put beside it only for the reader.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .value import expected_nll, value_targets


class Foresight(NamedTuple):
    """Of T tokens. What belongs to a part that the model does not have is empty: D or H is then 0."""

    token_nll: Tensor  # (T,): nats of the token that follows each; 0 at the last
    guesses: Tensor  # (T, 1 + D, N) int64: the N likeliest tokens 1 ... 1 + D places on, the likeliest first
    probabilities: Tensor  # (T, 1 + D, N)
    expected: Tensor  # (T, H): the mean nats of the next K tokens, as the value expects them, for each horizon K
    realised: Tensor  # (T, H): the same as they came
    known: Tensor  # (T, H): whether enough of the text is left to tell


@torch.no_grad()
def foresee(model: nn.Module, input_ids: Tensor, depth: int, best: int = 3) -> Foresight:
    """Reads one text, input_ids (T,), with a TransformerLM.

    The first place on is the LM head's own; `depth` more are the transition's. Raises ValueError for a text longer than
    the model's rows.
    """
    core = model.latent
    read = model.states(input_ids[None])
    hidden = read.final[0]
    token_nll = F.pad(F.cross_entropy(model.logits(hidden[:-1]), input_ids[1:], reduction="none"), (0, 1))
    states, places, rollout = hidden, [], None
    for _ in range(1 + (depth if core is not None and core.transition is not None else 0)):
        if places:
            rollout = rollout or core.begin(model.last_block, model.text(input_ids[None], read))
            states = rollout.step(states[None], model.tokens(places[-1].indices[:, 0])[None])[0]
        places.append(model.logits(states).softmax(-1).topk(best))
    none = token_nll.new_empty(len(input_ids), 0)
    expected, realised, known = none, none, none.bool()
    if core is not None and core.value_head is not None:
        expected = expected_nll(core.value(hidden))
        left = torch.arange(len(input_ids) - 1, -1, -1, device=input_ids.device)
        realised, known = (part[0] for part in value_targets(token_nll[None], left[None], core.value_head.horizons))
    guesses = torch.stack([place.indices for place in places], dim=1)
    probabilities = torch.stack([place.values for place in places], dim=1)
    return Foresight(token_nll, guesses, probabilities, expected, realised, known)
