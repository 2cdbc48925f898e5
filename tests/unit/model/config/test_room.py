"""model/config/room.py: rows that are too short for a part of the lookahead core are refused with the key."""

import pytest

from model.config import AuxiliaryConfig, require_room


@pytest.mark.parametrize(
    ("options", "least", "key"),
    [
        ({"enable_policy": True, "rollout_depth": 3}, 4, "rollout_depth"),
        ({"enable_draft": True, "draft_rollouts": 0, "draft_length": 4}, 5, "draft_length"),
        ({"enable_span_contrastive": True, "span_length": 8}, 9, "span_length"),
        ({"enable_value": True, "value_horizons": (4, 15)}, 8, "value_horizons"),
    ],
)
def test_rows_need_so_many_tokens(options: dict, least: int, key: str):
    auxiliary = AuxiliaryConfig(**options)
    require_room(auxiliary, least)
    with pytest.raises(ValueError, match=f"auxiliary.{key}: .* needs rows of {least} tokens"):
        require_room(auxiliary, least - 1)
    require_room(AuxiliaryConfig(), 2)
