"""model/config.py: what is accepted, and one-sentence refusals."""

import pytest
from pydantic import ValidationError

from model import AuxiliaryConfig, ModelConfig


def refusal(config_type, **keys) -> tuple[str, str]:
    with pytest.raises(ValidationError) as caught:
        config_type(**keys)
    (error,) = caught.value.errors()
    return ".".join(map(str, error["loc"])), error["msg"]


def test_heads_must_divide_hidden_size_also_when_one_is_a_default():
    assert refusal(ModelConfig, hidden_size=250) == (
        "hidden_size",
        "250 cannot be divided among num_heads 4; use 248 or 252",
    )
    assert refusal(ModelConfig, num_heads=3) == (
        "hidden_size",
        "256 cannot be divided among num_heads 3; use 255 or 258",
    )
    assert refusal(ModelConfig, hidden_size=2)[1] == "2 cannot be divided among num_heads 4; use 4"


@pytest.mark.parametrize(
    "keys",
    [
        {"num_heads": 0},
        {"num_layers": -1},
        {"seq_length": 1},
        {"dropout": 1.0},
        {"dropout": float("nan")},
        {"init_std": 0.0},
        {"hidden_size": "256"},
        {"num_layers": True},
        {"hiden_size": 256},
    ],
)
def test_out_of_range_wrongly_typed_and_unknown_keys_are_refused(keys):
    location, _ = refusal(ModelConfig, **keys)
    assert location == next(iter(keys))


def test_configurations_cannot_be_changed():
    with pytest.raises(ValidationError):
        ModelConfig().hidden_size = 512


@pytest.mark.parametrize("key", ["enable_policy", "enable_value", "enable_dynamics", "enable_span_contrastive"])
def test_look_ahead_switches_are_refused_not_ignored(key):
    location, message = refusal(AuxiliaryConfig, **{key: True})
    assert location == key
    assert message == "this look-ahead module is not part of this version yet; set it to false."
    AuxiliaryConfig(**{key: False})


@pytest.mark.parametrize("key", ["enable_adaptive_sources", "enable_curriculum"])
def test_other_switches_are_off_until_asked_for(key):
    assert getattr(AuxiliaryConfig(), key) is False
    assert getattr(AuxiliaryConfig(**{key: True}), key) is True


@pytest.mark.parametrize(
    "key",
    [
        *("span_mask_fraction", "policy_kl_weight", "adaptive_smoothing", "adaptive_min_weight"),
        "curriculum_temperature",
    ],
)
def test_auxiliary_ranges(key):
    assert refusal(AuxiliaryConfig, **{key: -0.5})[0] == key
