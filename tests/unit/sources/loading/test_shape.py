"""How rows are dealt to lanes and ranks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sources.loading.shape import BatchShape, choose_num_lanes, lanes_of_step, padded_micro_batch_size


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 16), st.sampled_from([16, 32, 48]), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**9))
def test_a_step_has_the_same_rows_on_any_world_and_fits(world_size, num_lanes, micro_batch_size, accumulation, first):
    ranks = [BatchShape(micro_batch_size, accumulation, 32, rank, world_size) for rank in range(world_size)]
    rows = micro_batch_size * accumulation * world_size
    assert ranks[0].rows_per_step == rows
    capacity = padded_micro_batch_size(ranks[0], num_lanes)
    assert micro_batch_size <= capacity <= 2 * micro_batch_size
    if num_lanes % world_size == 0:
        assert capacity == micro_batch_size
    most = 0
    for begin in range(first, first + num_lanes):  # wherever a step begins
        shares = [lanes_of_step(begin, shape, num_lanes) for shape in ranks]
        most = max(most, *map(len, shares))
        given = [iter(lanes) for lanes in shares]
        step = [row % num_lanes for row in range(begin, begin + rows)]
        assert [next(given[lane % world_size]) for lane in step] == step and sum(map(len, shares)) == rows
    assert (capacity - 1) * accumulation < most <= capacity * accumulation  # enough, and no row more


def test_a_row_of_several_windows_has_all_of_their_labels():
    assert BatchShape(4, 2, 32, windows=3).row_length == 96 and BatchShape(4, 2, 32).row_length == 32
    assert BatchShape(4, 2, 32, windows=3).rows_per_step == 8


def test_choose_num_lanes():
    assert [choose_num_lanes(world) for world in (1, 2, 3, 6, 8, 16, 24)] == [16, 16, 48, 48, 16, 16, 48]
    assert choose_num_lanes(4, 3) == 16 and choose_num_lanes(8, 4) == 32 and choose_num_lanes(3, 17) == 96
    for world in range(1, 100):
        shape = BatchShape(5, 2, 32, world_size=world)
        assert padded_micro_batch_size(shape, choose_num_lanes(world, 3)) == 5
