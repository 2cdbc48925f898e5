"""model/config/auxiliary.py: what is accepted, and one-sentence refusals."""

import pytest
from pydantic import ValidationError

from model import AuxiliaryConfig


def refusal(**keys) -> tuple[str, str]:
    with pytest.raises(ValidationError) as caught:
        AuxiliaryConfig(**keys)
    (error,) = caught.value.errors()
    return ".".join(map(str, error["loc"])), error["msg"]


LOOK_AHEAD = ["enable_policy", "enable_value", "enable_dynamics", "enable_span_contrastive"]


@pytest.mark.parametrize("key", [*LOOK_AHEAD, "enable_adaptive_sources", "enable_curriculum"])
def test_switches_are_off_by_default(key):
    assert getattr(AuxiliaryConfig(), key) is False
    on = AuxiliaryConfig(**{key: True})
    assert getattr(on, key) is True and on.looks_ahead == (key in LOOK_AHEAD)
    assert not AuxiliaryConfig().looks_ahead


def test_positions_that_cannot_lie_in_the_rows_are_refused():
    assert refusal(policy_position_fraction=0.5) == (
        "policy_position_fraction",
        "0.5 of all positions cannot lie in rollout_row_fraction 0.125 of the rows; lower it or raise "
        "rollout_row_fraction.",
    )
    AuxiliaryConfig(policy_position_fraction=0.5, rollout_row_fraction=0.5)


@pytest.mark.parametrize("horizons", [[], [16, 4], [4, 4], [0], ["4"], [4.5]])
def test_horizons_ascend(horizons):
    location, message = refusal(value_horizons=horizons)
    assert location.startswith("value_horizons")
    if horizons in ([], [16, 4], [4, 4]):
        assert (
            message == f"{horizons} is not a list of ascending numbers of tokens; give one or more, the smallest first."
        )
    assert AuxiliaryConfig(value_horizons=[4, 16]).value_horizons == (4, 16)  # a list, as JSON has it


@pytest.mark.parametrize("depth", [0, 4])
def test_rollouts_have_one_to_three_steps(depth):
    assert refusal(rollout_depth=depth)[0] == "rollout_depth"


@pytest.mark.parametrize(
    "key",
    [
        *("span_mask_fraction", "policy_kl_weight", "adaptive_smoothing", "adaptive_min_weight"),
        *("curriculum_temperature", "auxiliary_warmup_fraction", "rollout_row_fraction", "value_weight"),
    ],
)
def test_auxiliary_ranges(key):
    assert refusal(**{key: -0.5})[0] == key
