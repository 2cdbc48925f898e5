"""What is fitted to a finished model on text that it was not trained on, and kept in its snapshot: how it writes.

A model that is trained further is another one, so a run's next snapshot has none of it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ..latent import expected_nll
from ..latent.core import LookaheadCore

MOST_TEMPERATURE = 4.0  # of an adaptive one, and its reciprocal the least: a fit may not be followed beyond its text
T = TypeVar("T")
Foresight = Literal["drafter", "rollout", "path"]
Tempering = Callable[[Tensor, Tensor], Tensor]  # a model's logits (n, V) and the states (n, D) they are of -> (n,)


@dataclass(frozen=True)
class AdaptiveTemperature:
    """log T = bias + entropy * H + value * V: H is the entropy of the next token, V the mean loss that the value head
    expects of the coming ones, over its longest horizon; both in nats."""

    bias: float
    entropy: float
    value: float = 0.0  # 0 where the model has no value head

    def tempering(self, core: LookaheadCore | None, offset: float) -> Tempering:
        """The temperatures of a model with `core`, `offset` being added to each log T."""

        def temperatures(logits: Tensor, hidden: Tensor) -> Tensor:
            entropy, value = features(logits, hidden, core if self.value else None).unbind(-1)
            log_temperature = self.bias + offset + self.entropy * entropy + self.value * value
            most = math.log(MOST_TEMPERATURE)
            return log_temperature.clamp(-most, most).exp()

        return temperatures


def features(logits: Tensor, hidden: Tensor, core: LookaheadCore | None) -> Tensor:
    """(n, 2), fp32: the entropy of logits (n, V), and what the value head of `core` expects of states (n, D)."""
    log_p = logits.float().log_softmax(dim=-1)
    entropy = -torch.linalg.vecdot(log_p.exp(), log_p)
    if core is None or core.value_head is None:
        return torch.stack([entropy, torch.zeros_like(entropy)], dim=-1)
    value = expected_nll(core.value(hidden.to(core.value_head.up.weight.dtype)))[..., -1]
    return torch.stack([entropy, value], dim=-1)


@dataclass(frozen=True)
class PlanWeights:
    """How a planner weighs candidates for the next token: log p(a) + continuation * (the mean log-probability of the
    tokens after a) - value * (the mean loss expected after it, in nats). The weights are 0 or more."""

    threshold: float  # nats: it plans where the entropy of the next token is above this
    continuation: float  # of what is foreseen, when the candidates that are read are chosen
    value: float
    verified: float  # of what the model itself says once it has read them, in place of `continuation`
    foresight: Foresight  # what foresees: the drafter, or rollouts of the transition; see foresight.py


@dataclass(frozen=True)
class Fitted:
    """All of it; None where it was not fitted."""

    temperature: AdaptiveTemperature | None = None
    plan: PlanWeights | None = None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Fitted":
        """What `values` gave. Keys of later versions are ignored; raises ValueError for a value of another type."""
        return cls(
            _part(AdaptiveTemperature, values.get("temperature")),
            _part(PlanWeights, values.get("plan")),
        )

    def tempering(self, temperature: float | str, offset: float, core: LookaheadCore | None) -> Tempering | None:
        """What an adaptive `temperature` is, for a model with `core`; None for a number. Raises ValueError where it was
        not fitted."""
        if temperature != "adaptive":
            return None
        if self.temperature is None:
            raise ValueError(
                'temperature="adaptive" needs a model for which it was fitted; call lm.fit_temperature(texts) with '
                "texts that it was not trained on."
            )
        return self.temperature.tempering(core, offset)

    def plan_weights(self) -> PlanWeights:
        """Raises ValueError where they were not fitted."""
        if self.plan is None:
            raise ValueError(
                "plan needs a model for which it was fitted; call lm.fit_plan(texts) with texts that it was not "
                "trained on."
            )
        return self.plan

    def values(self) -> dict[str, Any]:
        """As a snapshot keeps it; empty where nothing was fitted."""
        return {name: part for name, part in asdict(self).items() if part is not None}


def _part(kind: type[T], values: Any) -> T | None:
    if values is None:
        return None
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        part = kind(**{key: value for key, value in values.items() if key in known})
    except (TypeError, AttributeError) as error:
        raise ValueError("what was fitted to the model is damaged; fit it again.") from error
    for value in vars(part).values():
        number = isinstance(value, float) and math.isfinite(value)
        if not number and value not in get_args(Foresight):
            raise ValueError("what was fitted to the model is damaged; fit it again.")
    return part
