"""The order of shards and rows, drawn by counter-based keys."""

import hashlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from sources.rows.filters import Filters
from sources.rows.pipeline_config import PipelineConfig
from sources.rows.sharding import counter_keys, share_of_lane

EXPECTED = [5, 4, 2, 7, 3, 6, 0, 1]
OLDER = {5: "dd2b", 16: "470e", 40: "44d6"}  # digests of what version 0.2.0 dealt


def test_keys_are_the_same_everywhere():
    """Written down once: another version of numpy, or another machine, must give the same order."""
    assert np.argsort(counter_keys(8, 1234, "wikipedia", "shards", 0)).tolist() == EXPECTED
    assert not np.array_equal(counter_keys(8, 1234, "a", "shards", 0), counter_keys(8, 1234, "a", "shards", 1))


def dealt(shards: int, epoch: int, cycle: int, tokenizer, shuffle: bool = True) -> list[list[tuple[int, int]]]:
    """(shard, document) that each of 16 lanes reads, in order, of shards of 50 documents."""
    source = SimpleNamespace(name="wikipedia", num_shards=shards)
    config = PipelineConfig(tokenizer, 32, "best_fit", Filters(0), 16, shuffle, 7, 0.0)
    shares = [share_of_lane(source, config, lane, epoch, cycle=cycle) for lane in range(16)]
    return [[(s, d) for s in share.shards for d in range(50) if share.owns(d)] for share in shares]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("shards", [1, 5, 16, 40])
def test_each_document_once_an_epoch_and_in_each_lane_once_a_cycle(shards, shuffle, tokenizer):
    everything = {(shard, document): 1 for shard in range(shards) for document in range(50)}
    met = [Counter() for _ in range(16)]
    for epoch in range(16, 32):
        lanes = dealt(shards, epoch, 16, tokenizer, shuffle)
        assert Counter(document for lane in lanes for document in lane) == everything
        for counts, lane in zip(met, lanes, strict=True):
            counts.update(lane)
    assert all(counts == everything for counts in met)
    following = dealt(shards, 32, 16, tokenizer, shuffle)
    assert shards == 1 or not shuffle or following != dealt(shards, 16, 16, tokenizer, shuffle)


@pytest.mark.parametrize("shards", [5, 10, 24, 40, 47])
def test_no_lane_has_to_read_more_than_one_shard_more_than_another(shards, tokenizer):
    read = np.zeros(16)
    for epoch in range(32):
        read += [len(lane) / 50 for lane in dealt(shards, epoch, 16, tokenizer)]
        assert np.ptp(read) <= 1.02  # 50 documents are divided among k lanes to within one


@pytest.mark.parametrize("shards", OLDER)
def test_an_epoch_that_an_older_version_began_is_dealt_as_it_was(shards, tokenizer):
    every = [dealt(shards, epoch, 1, tokenizer, shuffle) for epoch in (0, 3, 21) for shuffle in (True, False)]
    assert hashlib.blake2b(repr(every).encode()).hexdigest()[:4] == OLDER[shards]
