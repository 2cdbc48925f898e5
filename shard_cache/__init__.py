"""Tokenised blocks on disk: webdataset tar shards that a later run can verify. Knows nothing of sources or models."""

from shard_cache.cache import CachedSource, NotACache, ShardCache
from shard_cache.lane import CachedLane
from shard_cache.shard import BLOCKS_PER_SHARD, CachedBlock

__all__ = ["BLOCKS_PER_SHARD", "CachedBlock", "CachedLane", "CachedSource", "NotACache", "ShardCache"]
