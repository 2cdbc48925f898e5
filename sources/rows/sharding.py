"""Which shards and documents of a source a lane reads in an epoch.

Each epoch deals the shards to the lanes by a new permutation. When there are fewer shards than lanes, k lanes share a
shard: of every k documents in a row each lane takes one, by a permutation too, because the documents that the filters
drop may stand at equal distances. A replicated source has so few documents that every lane reads all of them, in an
order of its own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sources.rows.pipeline_config import PipelineConfig
from sources.source import Source


@dataclass(frozen=True)
class LaneShare:
    """What one lane reads of a source in one epoch."""

    shards: Sequence[int]  # in reading order
    lanes: int  # that share each of these shards, this one included
    turn: int  # of this lane among them, from 0
    key: tuple[str | int, ...]  # of the permutations that deal the documents

    def owns(self, document: int) -> bool:
        """Whether this lane takes a shard's document of this number, counted from 0."""
        if self.lanes == 1:
            return True
        row, place = divmod(document, self.lanes)
        return permutation(self.lanes, *self.key, row)[place] == self.turn


def share_of_lane(source: Source, config: PipelineConfig, lane: int, epoch: int) -> LaneShare:
    """Return what `lane` reads of a source in an epoch, counted from 0."""
    count, replicated = source.num_shards, source.name in config.replicated
    order: Sequence[int] = range(count)
    if config.shuffle:
        own = (lane,) if replicated else ()
        order = permutation(count, config.seed, source.name, "shards", epoch, *own)
    key = (config.seed, source.name, "documents", epoch)
    if replicated:
        return LaneShare(order, 1, 0, key)
    place = lane + epoch  # without shuffling, too, every lane comes to every shard
    if count >= config.num_lanes:
        return LaneShare(order[place % config.num_lanes :: config.num_lanes], 1, 0, key)
    sharing = len(range(lane % count, config.num_lanes, count))
    return LaneShare([order[place % count]], sharing, lane // count, key)


def is_first_reader(source: Source, config: PipelineConfig, lane: int) -> bool:
    """Whether no lane of a lower number reads the same shards."""
    return lane < (1 if source.name in config.replicated else source.num_shards)


def counter_keys(count: int, *key: str | int) -> np.ndarray:
    """Return `count` numbers in [0, 1), float64, drawn by the counter-based generator Philox for this key.

    They are the same on every machine, whatever was drawn before: numpy promises the sequence of Philox's raw bits for
    good, which it does not for its distributions and permutations.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype="<u8")).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


@lru_cache(maxsize=256)
def permutation(count: int, *key: str | int) -> tuple[int, ...]:
    """Return the numbers below `count` in an order drawn for this key."""
    return tuple(np.argsort(counter_keys(count, *key), kind="stable").tolist())
