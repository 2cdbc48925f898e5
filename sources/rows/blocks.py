"""Blocks on demand: any lane's next block from the state before it, from the shard cache or made from the source.

Nothing here decides when or for whom: a thread of the training process and a worker process use the same object.
"""

from dataclasses import dataclass, replace

from shard_cache import CachedLane, CachedSource
from sources.rows.packing import Block
from sources.rows.pipeline import Recipe, Stream, Surroundings, beginning
from sources.source import JSON, Source, SourceError
from storage import digest


@dataclass(frozen=True)
class Made:
    """A block, the state behind it, and what was passed over on the way: reason -> documents."""

    block: Block
    after: JSON
    counts: dict[str, int]


class BlockMaker:
    """Keeps a stream open for each source and lane it was asked for, so that going on costs nothing."""

    def __init__(
        self,
        sources: dict[str, Source],
        recipe: Recipe,
        cached: dict[str, CachedSource],
        around: Surroundings,
    ):
        self.sources, self.recipe, self.cached, self.around = sources, recipe, cached, around
        self._streams: dict[tuple[str, int], tuple[JSON, Stream]] = {}
        self._lanes: dict[tuple[str, int], CachedLane] = {}

    def make(self, name: str, lane: int, before: JSON | None) -> Made:
        """Return the block that follows the state `before` (None: the beginning). Raises SourceError."""
        source = self.sources[name]
        before = before or beginning(source)
        cached = self._cached_lane(name, lane)
        self._tell(name, source.notices)
        if cached is not None and (found := cached.read(before["block"], digest(before))) is not None:
            return Made(Block(**found.arrays), found.after, {})
        later = None
        if cached is not None:
            self._tell(name, self.cached[name].notices)
            later = cached.skip(before["block"])
        try:
            stream = self._stream(source, lane, before, patient=later is None)
            block, after = stream.next_block()
            if stream.is_first_of_shard:  # lanes that share a shard all meet the same rows
                self._count(name, source.counts)
            source.counts.clear()
        except SourceError as error:
            self._streams.pop((name, lane), None)
            if later is None:
                raise
            self.around.announce(
                name,
                "skipped",
                f"{name}: blocks {before['block']} to {later['block'] - 1} of lane {lane} are missing in the cache and "
                f"the source cannot be read ({error.reason}); they are skipped",
            )
            return self.make(name, lane, later)
        self._streams[name, lane] = after, stream
        if cached is not None:
            arrays = {"ids": block.ids, "lengths": block.lengths, "pieces": block.pieces}
            cached.append(before["block"], digest(before), arrays, after, begins=before)
            self._tell(name, self.cached[name].notices)
        self._tell(name, source.notices)
        return Made(block, after, self.around.counts.pop(name, {}))

    def flush(self) -> None:
        """Write to the cache what it still holds back."""
        for lane in self._lanes.values():
            lane.flush()

    def _count(self, name: str, counts: dict[str, int]) -> None:
        for reason, number in counts.items():
            self.around.count(name, reason, number)

    def _stream(self, source: Source, lane: int, before: JSON, patient: bool) -> Stream:
        recipe = self.recipe if patient else replace(self.recipe, retry_minutes=0.0)
        behind, stream = self._streams.pop((source.name, lane), (None, None))
        if behind == before:
            stream.recipe = recipe  # its patience may have been another one
            return stream
        return Stream(source, lane, recipe, self.around, before)

    def _cached_lane(self, name: str, lane: int) -> CachedLane | None:
        if name in self.cached and (name, lane) not in self._lanes:
            self._lanes[name, lane] = self.cached[name].lane(lane)
        return self._lanes.get((name, lane))

    def _tell(self, name: str, notices: list[str]) -> None:
        told, notices[:] = list(notices), []
        for notice in told:
            self.around.announce(name, "notice", notice)
