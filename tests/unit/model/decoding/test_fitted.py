"""model/decoding/fitted.py: what a snapshot keeps, and what a temperature is made of."""

import math

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.decoding.fitted import MOST_TEMPERATURE, AdaptiveTemperature, Fitted, PlanWeights, features
from model.latent import expected_nll

TEMPERATURE = AdaptiveTemperature(0.1, -0.2, 0.3)
PLAN = PlanWeights(threshold=4.0, continuation=0.5, value=0.1, verified=1.0, foresight="rollout")


@pytest.mark.parametrize("fitted", [Fitted(), Fitted(TEMPERATURE), Fitted(plan=PLAN), Fitted(TEMPERATURE, PLAN)])
def test_values_are_read_back(fitted):
    assert Fitted.from_values(fitted.values()) == fitted
    assert (fitted.values() == {}) == (fitted == Fitted())


def test_keys_of_later_versions_are_ignored_and_damage_is_not():
    values = Fitted(TEMPERATURE, PLAN).values()
    assert Fitted.from_values({**values, "later": 1, "plan": {**values["plan"], "more": [1]}}) == Fitted(
        TEMPERATURE, PLAN
    )
    for part, key, value in (
        ("temperature", "bias", "hot"), ("temperature", "bias", math.nan), ("plan", "value", None),
        ("plan", "foresight", "oracle"), ("plan", "threshold", 3),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="what was fitted to the model is damaged; fit it again"):
            Fitted.from_values({**values, part: {**values[part], key: value}})
    for part in ({"bias": 1.0}, [1.0], "bias"):
        with pytest.raises(ValueError, match="damaged"):
            Fitted.from_values({"temperature": part})


def test_a_temperature_follows_entropy_and_value():
    torch.manual_seed(0)
    config = ModelConfig(num_layers=1, num_heads=2, hidden_size=16, seq_length=8)
    core = TransformerLM(config, 20, AuxiliaryConfig(enable_value=True, value_horizons=(2, 4))).latent
    logits, hidden = torch.randn(5, 20) * 3, torch.randn(5, 16)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    value = expected_nll(core.value(hidden))[:, 1]
    torch.testing.assert_close(features(logits, hidden, core), torch.stack([entropy, value], 1))
    expected = (0.1 + 0.05 - 0.2 * entropy + 0.3 * value).exp()
    found = Fitted(TEMPERATURE).tempering("adaptive", 0.05, core)(logits, hidden)
    torch.testing.assert_close(found, expected.clamp(1 / MOST_TEMPERATURE, MOST_TEMPERATURE))
    without = AdaptiveTemperature(0.1, -0.2).tempering(None, 0.0)(logits, hidden)
    torch.testing.assert_close(without, (0.1 - 0.2 * entropy).exp())
    high = AdaptiveTemperature(9.0, 0.0).tempering(core, 0.0)(logits, hidden)
    torch.testing.assert_close(high, torch.full((5,), MOST_TEMPERATURE))
    assert Fitted(TEMPERATURE).tempering(0.7, 0.0, core) is None


def test_what_was_not_fitted_says_how():
    with pytest.raises(ValueError, match=r"adaptive.*call lm\.fit_temperature\(texts\)"):
        Fitted().tempering("adaptive", 0.0, None)
    with pytest.raises(ValueError, match=r"plan needs.*call lm\.fit_plan\(texts\)"):
        Fitted().plan_weights()
    assert Fitted(plan=PLAN).plan_weights() == PLAN
