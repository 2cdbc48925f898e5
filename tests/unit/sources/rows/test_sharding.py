"""The order of shards and rows, drawn by counter-based keys."""

import numpy as np

from sources.rows.sharding import counter_keys

EXPECTED = [5, 4, 2, 7, 3, 6, 0, 1]


def test_keys_are_the_same_everywhere():
    """Written down once: another version of numpy, or another machine, must give the same order."""
    assert np.argsort(counter_keys(8, 1234, "wikipedia", "shards", 0)).tolist() == EXPECTED
    assert not np.array_equal(counter_keys(8, 1234, "a", "shards", 0), counter_keys(8, 1234, "a", "shards", 1))
