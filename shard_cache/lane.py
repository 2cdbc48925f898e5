"""One lane's chain of blocks: read by number and state, appended shard by shard, skipped along where it is damaged."""

import os
import re

import numpy as np

from shard_cache.shard import BLOCKS_PER_SHARD, CachedBlock, Shard, encode, paths, read_shard, write_shard
from shard_cache.space import CacheEntry, Space
from storage import JSON, Damaged, digest, exclusive, refuse_links

_SIDECAR = re.compile(r"([0-9]{6,18})\.json")


class CachedLane:
    """The blocks of one lane of one source. One owner at a time appends; any process may read what is on disk.

    A block is found by its number and the digest of the state before it, so that blocks of another chain are never
    taken for this one's. Nothing here raises for what a disk does: what cannot be read is absent, what cannot be
    written is not kept, and the cache's notices say so.
    """

    def __init__(self, source: CacheEntry, lane: int, source_digest: str, space: Space):
        self.folder = source.folder / f"lane-{lane:04d}"
        self._source = source  # in use as long as a lane of it is
        self._owner = {"source": source_digest, "lane": lane}
        self._space = space
        self._damaged: set[int] = set()  # first blocks of the shards that were reported
        self._reading: Shard | None = None  # holds the blocks being read
        self._filling: Shard | None = None  # not yet on disk
        self._next_digest: str | None = None  # of the state after its last block

    def read(self, number: int, before: str) -> CachedBlock | None:
        """Return block `number` if it is here, whole, and follows the state whose digest is `before`."""
        shard = self._find(number, before)
        if shard is None:
            return None
        # Kept in memory only as long as further blocks of it may be asked for.
        self._reading = shard if shard is not self._filling and number < shard.last else None
        return self._block(shard, number)

    def append(
        self,
        number: int,
        before: str,
        arrays: dict[str, np.ndarray],
        after: JSON,
        *,
        begins: JSON = None,
        notes: JSON = None,
    ) -> None:
        """Keep a block that the lane does not hold yet; it is on disk once its shard is full, or after `flush`.

        `before` is the digest of the state before the block and `begins` that state itself: where it is not given,
        `skip` cannot lead to this block when it is the first of a shard. Raises ValueError for arrays of other things
        than numbers, and for names other than lower-case identifiers.
        """
        if self._space.stopped or self._find(number, before):
            return
        members = encode(arrays, after, notes)
        if self._filling and (number, before) != (self._filling.last + 1, self._next_digest):
            self.flush()
        if self._filling is None:
            self._filling = Shard(number, begins)
        self._filling.before.append(before)
        self._filling.blocks.append(members)
        self._next_digest = digest(after)
        if self._filling.is_full:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet, as a shard that may be short."""
        shard, self._filling = self._filling, None
        if shard is None or self._space.stopped:
            return
        tar = shard.pack()
        sidecar = shard.describe(tar, self._owner)
        with self._space.writing_to(self.folder):
            refuse_links(self._source.folder, self.folder)
            if not self._space.take(len(tar) + len(sidecar)):
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive(self.folder) as alone:
                if not alone:
                    return  # another writer of this lane makes the same blocks
                there = self._load(shard.first, reaching=shard.last)
                if there is None or there.before[: len(shard.before)] != shard.before:
                    write_shard(self.folder, shard.first, tar, sidecar)
                    self._damaged.discard(shard.first)

    def skip(self, number: int) -> JSON | None:
        """Return the state before the first whole block after block `number`, or None when there is none.

        It leads past a damaged block when the source cannot be reached to make it again.
        """
        for first in self._first_blocks():
            shard = self._load(first, reaching=number + 1) if first + BLOCKS_PER_SHARD > number + 1 else None
            if shard is None:
                continue
            for candidate in range(max(number + 1, first), shard.last + 1):
                state = shard.begins
                if candidate > first and (previous := self._block(shard, candidate - 1)):
                    state = previous.after
                if shard.holds(candidate, digest(state)) and self._block(shard, candidate):
                    self._reading = shard
                    return state
        return None

    def _find(self, number: int, before: str) -> Shard | None:
        """Return the shard with this block: the one being read or filled, or else one on disk."""
        for shard in (self._reading, self._filling):
            if shard is not None and shard.holds(number, before):
                return shard
        for first in range(number, max(number - BLOCKS_PER_SHARD, -1), -1):
            shard = self._load(first, reaching=number)
            if shard is not None and shard.holds(number, before):
                self._reading = shard
                return shard
        return None

    def _load(self, first: int, reaching: int) -> Shard | None:
        """Return the verified shard whose first block is `first` and that has block `reaching`, if there is one."""
        if self._reading is not None and self._reading.first == first and self._reading.last >= reaching:
            return self._reading
        if first in self._damaged or not os.path.lexists(f"{self.folder}/{first:06d}.json"):
            return None
        try:
            refuse_links(self._source.folder, self.folder)
            return read_shard(self.folder, first, self._owner, reaching)
        except Damaged as error:
            self._report(first, str(error))
        except OSError:
            pass  # a lane behind a link is not read; writing it says so
        return None

    def _block(self, shard: Shard, number: int) -> CachedBlock | None:
        try:
            return shard.block(number)
        except Damaged as error:
            self._report(shard.first, str(error))
            return None

    def _report(self, first: int, why: str) -> None:
        self._damaged.add(first)
        self._reading = None
        path, _ = paths(self.folder, first)
        self._space.notices.append(f"{path} is damaged ({why}); it is made again from the source.")

    def _first_blocks(self) -> list[int]:
        """Return the first blocks of the shards on disk, in order."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        return sorted(int(found[1]) for found in map(_SIDECAR.fullmatch, names) if found)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_reading": None, "_filling": None}  # what is not on disk stays with the original
