"""Any lane's next block from the state before it: read from the shard cache, or made by a pipeline in this process."""

from dataclasses import dataclass
from typing import cast

from shard_cache import CachedLane, CachedSource
from sources.rows.handover import open_chain
from sources.rows.packing import RowBlock
from sources.rows.pipeline import BlockResult, PipelineCallbacks, PipelineState, RowPipeline, initial_state
from sources.rows.pipeline_config import PipelineConfig
from sources.source import Source, SourceError
from storage import digest

DOCUMENTS = "documents"  # in a cached block's notes, beside the reasons of filtered ones


@dataclass(frozen=True)
class ProducerSetup:
    """What blocks are produced from; travels to worker processes."""

    sources: dict[str, Source]
    config: PipelineConfig
    cached: dict[str, CachedSource]  # empty without a cache


class LocalProducer:
    """Keeps the pipeline of each source and lane, so that the block behind the last one costs nothing extra."""

    def __init__(self, setup: ProducerSetup, callbacks: PipelineCallbacks):
        self.sources, self.config, self.cached = setup.sources, setup.config, setup.cached
        self.callbacks = callbacks
        self._pipelines: dict[tuple[str, int], RowPipeline] = {}
        self._cached_lanes: dict[tuple[str, int], CachedLane] = {}

    def produce(self, name: str, lane: int, before: PipelineState | None) -> BlockResult:
        """Return the block that follows the state `before` (None: the first one). Raises SourceError.

        A block that is damaged in the cache, and that the source cannot give again at once, is skipped when the cache
        holds later ones.
        """
        before = before or initial_state(self.sources[name], self.config)
        cached = self._cached_lane(name, lane)
        if cached is not None and (found := cached.read(before["block"], digest(before))) is not None:
            self._announce_notices(name)
            if before["block"] == 0:  # what opening the source counted was counted then, with the first block
                self.sources[name].counts.clear()
            filtered = dict(cast(dict[str, int], found.notes or {}))
            documents = filtered.pop(DOCUMENTS, 0)  # caches of older versions do not have it
            return BlockResult(RowBlock(**found.arrays), cast(PipelineState, found.after), filtered, documents)
        later = cast(PipelineState | None, cached.skip(before["block"]) if cached is not None else None)
        self._announce_notices(name)
        try:
            result = self._make(name, lane, before, retry=later is None)
        except SourceError as error:
            if later is None:
                raise
            self.callbacks.announce(
                name,
                "skipped",
                f"{name}: blocks {before['block']} to {later['block'] - 1} of lane {lane} are missing in the cache and "
                f"the source cannot be read ({error.reason}); they are skipped",
            )
            return self.produce(name, lane, later)
        if cached is not None:
            block = result.block
            arrays = {"ids": block.ids, "lengths": block.lengths, "pieces": block.pieces}
            notes = {**result.filtered, DOCUMENTS: result.documents}
            cached.append(before["block"], digest(before), arrays, result.after, begins=before, notes=notes)
        self._announce_notices(name)
        return result

    def flush(self) -> None:
        """Write to the cache what it still holds back."""
        for lane in self._cached_lanes.values():
            lane.flush()

    def kill(self) -> None:
        """Nothing to end here: a read that hangs keeps its thread, which is a daemon."""

    def _make(self, name: str, lane: int, before: PipelineState, retry: bool) -> BlockResult:
        pipeline = self._pipelines.pop((name, lane), None)  # one that fails is not used again
        if pipeline is None or pipeline.state != before:
            pipeline = open_chain(self.sources[name], lane, self.config, self.callbacks, before, retry=retry)
        result = pipeline.next_block(retry=retry)
        self._pipelines[name, lane] = pipeline
        return result

    def _cached_lane(self, name: str, lane: int) -> CachedLane | None:
        if name in self.cached and (name, lane) not in self._cached_lanes:
            self._cached_lanes[name, lane] = self.cached[name].lane(lane)
        return self._cached_lanes.get((name, lane))

    def _announce_notices(self, name: str) -> None:
        for holder in filter(None, (self.sources[name], self.cached.get(name))):
            while holder.notices:
                self.callbacks.announce(name, "notice", holder.notices.pop(0))
