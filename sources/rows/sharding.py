"""Which shards and documents of a source a lane reads in an epoch.

A permutation deals the shards to the lanes in parts, which each epoch passes on by one lane. When every lane has had
every part, the shards are dealt anew. So lanes whose parts differ in length come together again; the longer parts, of
one shard more, stand at equal distances, so that no lane has to read more than one shard more than another until then.
When there are fewer shards than lanes, k lanes share a shard: of every k documents in a row each lane takes one, by a
permutation too, because the documents that the filters drop may stand at equal distances. A small source is not dealt:
the lanes share one chain of its blocks, in which each epoch reads the shards in another order.
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


def share_of_lane(source: Source, config: PipelineConfig, lane: int, epoch: int, cycle: int) -> LaneShare:
    """Return what `lane` reads of a source in an epoch, counted from 0.

    The deal is another every `cycle` epochs: as many as there are lanes, or one, as in older versions.
    """
    name, count, num_lanes = source.name, source.num_shards, config.num_lanes

    def order(number: int, *key: str | int) -> Sequence[int]:
        return permutation(number, config.seed, name, *key) if config.shuffle else range(number)

    if name in config.shared:
        return LaneShare(order(count, "shards", epoch), 1, 0, ())
    deal, part = epoch // cycle, (lane + epoch) % num_lanes
    shards, key = order(count, "shards", deal), (config.seed, name, "documents", deal)
    if cycle == 1 and count >= num_lanes:
        return LaneShare(shards[part::num_lanes], 1, 0, key)
    if cycle == 1:
        sharing = len(range(lane % count, num_lanes, count))
        return LaneShare([shards[(lane + epoch) % count]], sharing, lane // count, key)
    first = part * count // num_lanes
    if count >= num_lanes:
        own = shards[first : (part + 1) * count // num_lanes]
        return LaneShare([own[place] for place in order(len(own), "part", epoch, part)], 1, 0, key)
    begin, end = (-(-shard * num_lanes // count) for shard in (first, first + 1))  # the parts of this shard
    return LaneShare([shards[first]], end - begin, part - begin, key)


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
