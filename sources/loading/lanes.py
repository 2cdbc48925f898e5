"""A virtual lane, the unit of sharding and of resuming: a queue of blocks for each source, and a mixer that picks whose
row is next."""

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass

from sources.loading.mixing import SequentialMixer, WeightedMixer
from sources.loading.prefetch import Prefetcher
from sources.loading.state import LaneState, MixerState, StreamState
from sources.rows.packing import RowBlock, every
from sources.rows.pipeline import BlockResult, PipelineState
from sources.source import SourceError


class SourceLost(Exception):
    """A source cannot be read any more; every rank must go on without it from the same step on."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


@dataclass
class RowSpan:
    """Rows of one block from `first` on, and the places that they take in a batch."""

    source: str
    block: RowBlock
    first: int
    places: list[int]


class BlockQueue:
    """One source's blocks in one lane: the one in use, and the next one, which is produced meanwhile.

    Of a small source all V lanes share one chain of blocks, of which lane v takes rows v, v + V, v + 2V and so on.
    """

    def __init__(self, name: str, lane: int, prefetcher: Prefetcher, saved: StreamState | None):
        self.name, self.lane, self.prefetcher = name, lane, prefetcher
        self.tokens = saved["tokens"] if saved else 0  # labels delivered since the lineage began
        self.dry = False  # no shard holds a usable text
        self.filtered: Counter[str] = Counter()  # documents, by reason
        self.documents = 0  # the others, in the blocks since the start
        self._lanes = prefetcher.lanes_of_chain(name)
        self._before: PipelineState | None = saved["state"] if saved else None  # the block in use
        self._taken = saved["taken"] if saved else 0  # of this lane's rows of the block in use
        self._current: BlockResult | None = None
        self._rows: RowBlock | None = None  # this lane's rows of the block in use
        self._lengths: list[int] = []  # labels of each of them
        self._next = self._request(self._before)

    @property
    def epoch(self) -> int:
        """Of the next row, from 0; `fetch` must have been called."""
        return self._before["pass"] if self._before else 0

    @property
    def left(self) -> int:
        """This lane's rows of the block in use that are not taken; `fetch` must have been called."""
        return len(self._lengths) - self._taken

    def fetch(self) -> bool:
        """Have a row ready; False when there will be none. Raises SourceLost, on every call once it failed."""
        while self._taken >= len(self._lengths):
            if self.dry:
                return False
            if self._current is not None:
                self._before, self._taken = self._current.after, 0
                self._current, self._rows, self._lengths = None, None, []
            try:
                result = self._next.result()
            except SourceError as error:
                raise SourceLost(self.name, error.reason) from error
            self._current, self._rows = result, self._own_rows(result.block)
            self._lengths = self._rows.lengths.tolist()
            if self._lanes == 1 or self.lane == 0:  # else another lane counts
                self.filtered.update(result.filtered)
                self.documents += result.documents
            if len(result.block):
                self._next = self._request(result.after)
            else:
                self.dry = True
        return True

    def take(self, rows: int) -> tuple[RowBlock, int, int]:
        """Take the next `rows` rows, at most `left`: their block, the first one's index there, their labels."""
        assert self._rows is not None, "no row was fetched"
        first, self._taken = self._taken, self._taken + rows
        tokens = sum(self._lengths[first : self._taken])
        self.tokens += tokens
        return self._rows, first, tokens

    def state(self) -> StreamState:
        """Return what `saved` takes; the same value as long as no row was taken."""
        return {"state": self._before, "taken": self._taken, "tokens": self.tokens}

    def _own_rows(self, block: RowBlock) -> RowBlock:
        if self._lanes == 1:
            return block
        made = self._before.get("rows", 0) if self._before else 0
        return every(block, (self.lane - made) % self._lanes, self._lanes)

    def _request(self, before: PipelineState | None) -> Future[BlockResult]:
        return self.prefetcher.submit(self.name, self.lane, before)


class Lane:
    """One lane's queues and mixer; the state of sources that are absent this time passes through untouched."""

    def __init__(
        self,
        number: int,
        names: list[str],
        weights: dict[str, float] | None,
        row_length: int,
        prefetcher: Prefetcher,
        state: LaneState | None = None,
    ):
        """`names` are the open sources; `weights` of None asks for sequential mixing."""
        saved = state["streams"] if state else {}
        self._absent = {name: stream for name, stream in saved.items() if name not in names}
        self.queues = {name: BlockQueue(name, number, prefetcher, saved.get(name)) for name in names}
        self.mixer: WeightedMixer | SequentialMixer
        if weights is None:
            self.mixer = SequentialMixer(names, lambda name: self.queues[name].epoch)
        else:
            phase = 0 if state else number
            self.mixer = WeightedMixer({name: weights[name] for name in names}, row_length, phase)
        if state is not None:
            mixer: MixerState = {**state["mixer"]}
            if mixer.get("current") not in saved:  # a source that starts again has no turn to finish
                mixer.pop("current", None)
            self.mixer.load(mixer)

    def take(self, places: list[int]) -> list[RowSpan]:
        """Take the next rows, one for each of a batch's `places` in order; fewer only when there is nothing to read any
        more. Raises SourceLost."""
        spans: dict[int, RowSpan] = {}  # by the block's identity
        taken = 0
        while taken < len(places):
            # All are made ready first: what shares the rows must not depend on which were asked before a restart.
            live = [name for name, queue in self.queues.items() if queue.fetch()]
            if not live:
                break
            name = self.mixer.pick(live)
            queue = self.queues[name]
            count = min(len(places) - taken, queue.left) if len(live) == 1 else 1
            block, first, tokens = queue.take(count)
            self.mixer.charge(name, live, tokens)
            spans.setdefault(id(block), RowSpan(name, block, first, [])).places.extend(places[taken : taken + count])
            taken += count
        return list(spans.values())

    def set_weights(self, weights: dict[str, float]) -> None:
        """Mix by other weights from the next row on; sequential mixing has none."""
        if isinstance(self.mixer, WeightedMixer):
            self.mixer.weights = weights

    def state(self) -> LaneState:
        """Return what resumes right after the last row."""
        streams = {name: queue.state() for name, queue in self.queues.items()}
        return {"streams": self._absent | streams, "mixer": self.mixer.state()}
