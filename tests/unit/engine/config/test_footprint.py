"""What a rank needs, and which stage fits; tests/integration/test_shares.py measures."""

import pytest

from engine.config.footprint import SHARE_USED, Footprint
from model.config import ModelConfig

SHAPE = ModelConfig(hidden_size=64, num_layers=2, num_heads=2, seq_length=32)


def footprint(parameters: int = 1_000_000, world_size: int = 4, **options) -> Footprint:
    return Footprint(SHAPE, parameters, 2, world_size, **options)


def test_state_by_stage():
    """Weights, gradients and two moments of 4 bytes; at stages 1 and 2, a copy of the weights that a rank steps."""
    of = footprint()
    assert [of.state_bytes(stage) for stage in range(4)] == [16e6, 4e6 + 4e6, 4e6 + 4e6, 4e6]
    offloaded = footprint(offloaded=True)
    assert [offloaded.state_bytes(stage) for stage in (1, 2)] == [4e6, 4e6]


def test_activations_that_are_computed_again_are_not_kept():
    width = 2 * 32 * 64
    assert footprint().step_bytes(0) == 34 * 2 * width
    assert footprint(checkpointed=True).step_bytes(0) == (4 * 2 + 34) * width
    assert footprint().step_bytes(1) == 34 * 2 * width + 4e6 + 2e8, "gradients that are not divided yet, and a bucket"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_lowest_stage_that_fits_is_taken(stage: int):
    of = footprint(10**9, world_size=64)  # whose needs differ at each stage
    needs = [of.needed(one) for one in range(4)]
    assert needs[0] > needs[1] > needs[2] > needs[3]
    assert of.lowest_stage("auto", needs[stage] / SHARE_USED) == stage
    assert of.lowest_stage("auto", needs[3] / SHARE_USED - 1) == 3, "where none does, the last"
    assert of.lowest_stage(2, 1) == 2


def test_what_a_tried_micro_batch_lacks():
    """It has weights and gradients, 8 bytes a parameter."""
    of = footprint()
    assert [of.bytes_beside(stage) for stage in range(4)] == [8e6, 4e6, 0, 0]
    assert footprint(offloaded=True).bytes_beside(1) == 0


def test_offloading_leaves_two_stages():
    of = footprint(offloaded=True)
    assert of.stages("auto") == (1, 2) and of.stages(1) == (1,)
