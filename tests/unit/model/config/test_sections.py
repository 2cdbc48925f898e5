"""model/config/sections.py: what is accepted, and one-sentence refusals."""

import pytest
from pydantic import ValidationError

from model import ModelConfig


def refusal(config_type, **keys) -> tuple[str, str]:
    with pytest.raises(ValidationError) as caught:
        config_type(**keys)
    (error,) = caught.value.errors()
    return ".".join(map(str, error["loc"])), error["msg"]


def test_heads_divide_hidden_size_also_by_default():
    assert refusal(ModelConfig, hidden_size=250) == (
        "hidden_size",
        "250 cannot be divided among num_heads 4; use 248 or 252",
    )
    assert refusal(ModelConfig, num_heads=3) == (
        "hidden_size",
        "256 cannot be divided among num_heads 3; use 255 or 258",
    )
    assert refusal(ModelConfig, hidden_size=2**20, num_heads=3)[1].endswith("use 1048575")  # the next is too large
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
def test_bad_values_and_unknown_keys_are_refused(keys):
    location, _ = refusal(ModelConfig, **keys)
    assert location == next(iter(keys))


def test_configurations_cannot_be_changed():
    with pytest.raises(ValidationError):
        ModelConfig().hidden_size = 512


def test_an_odd_head_cannot_be_rotated():
    with pytest.raises(ValidationError, match="12 over num_heads 4 is odd, and rotary positions need pairs"):
        ModelConfig(hidden_size=12, num_heads=4, positions="rotary")
