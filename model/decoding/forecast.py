"""What a model expects at each token of a text, before it reads on: the next tokens, and how hard they will be.

The steps ahead follow the model's own best guesses, so no expectation uses a later token; what really came is reported
beside it for the reader.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..latent import expected_nll
from ..latent.value import value_targets
from ..transformer import TransformerLM


class Forecast(NamedTuple):
    """Of T tokens. What belongs to a part that the model does not have is empty: D or H is then 0."""

    horizons: tuple[int, ...]  # H numbers of tokens K
    token_nll: Tensor  # (T,): nats of the token that follows each; 0 at the last
    guesses: Tensor  # (T, 1 + D, N) int64: the N likeliest tokens 1 ... 1 + D places on, the likeliest first
    probabilities: Tensor  # (T, 1 + D, N)
    expected: Tensor  # (T, H): the mean nats of the next K tokens that the value expects, for each horizon K
    realised: Tensor  # (T, H): the same mean of the tokens that came
    known: Tensor  # (T, H): whether enough of the text is left for `realised`


@torch.no_grad()
def forecast(model: TransformerLM, input_ids: Tensor, depth: int, best: int = 3) -> Forecast:
    """Read one text, input_ids (T,).

    The LM head guesses the next token, the transition the `depth` tokens after it. Raises ValueError for a text longer
    than the model's rows.
    """
    core = model.latent
    states = model.states(input_ids[None])
    hidden = states.final[0]
    token_nll = F.pad(F.cross_entropy(model.logits(hidden[:-1]), input_ids[1:], reduction="none"), (0, 1))
    places = [model.logits(hidden).softmax(-1).topk(best)]
    if core is not None and core.transition is not None:
        rollout, predicted = core.begin_rollout(model, input_ids[None], states), hidden
        for _ in range(depth):
            predicted = rollout.step(predicted[None], model.tokens(places[-1].indices[:, 0])[None])[0]
            places.append(model.logits(predicted).softmax(-1).topk(best))
    empty = token_nll.new_empty(len(input_ids), 0)
    horizons, expected, realised, known = (), empty, empty, empty.bool()
    if core is not None and core.value_head is not None:
        horizons, expected = core.value_head.horizons, expected_nll(core.value(hidden))
        left = torch.arange(len(input_ids) - 1, -1, -1, device=input_ids.device)
        realised, known = (part[0] for part in value_targets(token_nll[None], left[None], horizons))
    guesses = torch.stack([place.indices for place in places], dim=1)
    probabilities = torch.stack([place.values for place in places], dim=1)
    return Forecast(horizons, token_nll, guesses, probabilities, expected, realised, known)
