"""Step 7 of a text's way: rows become batches, each with the state that resumes right after it.

prefetch.py has blocks made, lanes.py says whose row is next, and a thread here puts rows together into batches, a few
ahead of training. What is prepared but not handed out is in no state, so neither the depth of this queue nor the number
of workers or ranks changes a run.
"""

import math
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from shard_cache import ShardCache
from sources.caching import cached_sources
from sources.config import DataConfig
from sources.decontamination import forbidden_ngrams
from sources.loading.lanes import Lane, SourceLost
from sources.loading.prefetch import Prefetcher, SourceEvent, WorkerError
from sources.loading.shape import BatchShape, choose_num_lanes, lanes_of_step, padded_micro_batch_size
from sources.loading.state import (
    LoaderState,
    is_readable,
    merge_states,
    new_state,
    upgraded,
    with_rows,
)
from sources.registry import OpenedSources
from sources.rows.filters import Filters
from sources.rows.handover import in_format
from sources.rows.near_copies import NearCopies
from sources.rows.packing import IGNORE, gather
from sources.rows.pipeline import PipelineState, initial_state
from sources.rows.pipeline_config import PipelineConfig, RowFormat
from sources.rows.producer import ProducerSetup
from sources.rows.tokenizer import TextTokenizer
from sources.source import PER_ROW

__all__ = ["Batch", "BatchShape", "Loader", "LoaderOptions", "SourceLost", "WorkerError", "merge_states"]

PREFETCH = 3  # batches made ahead, the one under way included; fewer than the delay of adaptive weights
CLOSE_SECONDS = 3.0


@dataclass(frozen=True)
class Batch:
    """One optimizer step's rows of this rank: A gradient accumulation steps of B rows (padded_micro_batch_size) of T
    tokens, of all windows of a row."""

    input_ids: torch.Tensor  # (A, B, T) int64
    labels: torch.Tensor  # (A, B, T) int64, aligned with input_ids; -100 is padding
    segment_ids: torch.Tensor  # (A, B, T) int32: the pieces of documents in a row, from 0; -1 is padding
    source_ids: torch.Tensor  # (A, B) int64 index into Loader.source_names
    num_tokens: int  # labels that are not padding
    number: int  # of this batch in its lineage, from 0
    state: LoaderState  # this rank's lanes; resumes right after this batch
    events: list[SourceEvent]  # what happened to sources since the previous batch


@dataclass(frozen=True)
class LoaderOptions:
    """`num_lanes`, `seed`: of a new lineage (None: choose_num_lanes). `weights_at(number)` returns the sources' weights
    for the batch of that number, and is asked a few batches ahead. `near_copies` are those of the validation documents,
    which are not trained on. `long_texts`: rows are of documents of data.long_text_length."""

    num_lanes: int | None = None
    num_workers: int = 0  # processes that produce blocks; 0: a thread
    seed: int = 0
    pin_memory: bool = False
    cache: ShardCache | None = None
    weights_at: Callable[[int], dict[str, float]] | None = None
    near_copies: NearCopies = field(default_factory=NearCopies)
    long_texts: bool = False


class Loader:
    """One rank's batches, without end; of padding alone when this rank has nothing to read.

    `state` is a lineage's merged state (or, with one rank, a batch's). Raises ValueError when there are more ranks than
    lanes or the state cannot be continued, AllSourcesFailed when no source is open, and SourceError when a text of
    `config.decontaminate` cannot be read.
    """

    def __init__(
        self,
        opened: OpenedSources,
        config: DataConfig,
        tokenizer: TextTokenizer,
        shape: BatchShape,
        options: LoaderOptions = LoaderOptions(),
        state: LoaderState | None = None,
    ):
        opened.check()
        if state is not None and not is_readable(state):
            raise ValueError("The data position was saved by another version of this program and cannot be continued.")
        for source in opened.sources.values():  # counted when they were read for other purposes
            for reason in PER_ROW:
                source.counts.pop(reason, None)
        self.source_names = [spec.source_name for spec in config.sources]
        self.opened, self.shape, self.options = opened, shape, options
        rows: RowFormat = {"seq_length": shape.seq_length, "packing": config.packing}
        if options.long_texts and config.long_text_length:
            rows["long_text_length"] = config.long_text_length
        if shape.windows > 1:
            rows["windows"] = shape.windows
        num_lanes = options.num_lanes or choose_num_lanes(shape.world_size, options.num_workers)
        # Behind the newest batch.
        self._state: LoaderState = {**(state or new_state(options.seed, config.shuffle, num_lanes, rows))}
        self._state.pop("tokens_per_source", None)
        self.num_lanes = self._state["num_lanes"]
        if shape.world_size > self.num_lanes:
            raise ValueError(
                f"This run's data is divided among {self.num_lanes} lanes, one process each at the most; "
                f"start it with at most {self.num_lanes} processes."
            )
        pipeline = configure_pipeline(opened, config, tokenizer, self._state, options.near_copies, options.cache)
        pipeline = in_format(pipeline, rows)

        def start(name: str, epoch: int = 0) -> PipelineState | None:
            return initial_state(source, pipeline, epoch) if (source := opened.sources.get(name)) else None

        self._state, moved = upgraded(self._state, opened.small & opened.sources.keys(), start)
        has_other_rows = self._state["rows"] != rows
        if has_other_rows:
            self._state = with_rows(self._state, rows, opened.small, start)
        self._eos_id = tokenizer.eos_id
        self._dims = (shape.grad_accumulation_steps, padded_micro_batch_size(shape, self.num_lanes))
        numbers = range(shape.rank, self.num_lanes, shape.world_size)
        cached = cached_sources(options.cache, opened.sources, config, pipeline) if options.cache is not None else {}
        setup = ProducerSetup(opened.sources, pipeline, cached)
        self._prefetcher = Prefetcher(setup, min(options.num_workers, len(numbers)))
        if has_other_rows:
            message = f"rows have {shape.row_length:,} tokens from here on; what was packed and not read is packed anew"
            self._prefetcher.announce("all", "notice", message)
        for name, epoch in moved.items():
            message = f"{name}: each lane had an order of its own; now all share one, and begin epoch {epoch + 1}"
            self._prefetcher.announce(name, "notice", message)
        names = [name for name in self.source_names if name in opened.sources]
        weights = None if config.mix_strategy == "sequential" else config.weights()
        saved = self._state["lanes"]
        self._lanes = {
            number: Lane(number, names, weights, shape.row_length, self._prefetcher, saved.get(str(number)))
            for number in numbers
        }
        self._epochs = {name: self._newest_epoch(name) for name in names}
        self._slots = threading.Semaphore(PREFETCH)
        self._ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._prepare, name="loader", daemon=True)
        self._thread.start()

    def next(self, timeout: float | None = None) -> Batch | None:
        """Return the next batch, or None when it is not ready within `timeout` seconds (None: waits).

        Raises SourceLost when a source cannot be read any more, then and on every later call: the caller closes this
        loader and makes one without the source, on all ranks, from the state of the last batch that was used. Raises
        WorkerError when a worker process cannot go on.
        """
        try:
            item = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            self._ready.put(item)
            raise item
        self._slots.release()
        return replace(item, events=self.take_events())

    def __iter__(self) -> Iterator[Batch]:
        while (batch := self.next()) is not None:
            yield batch

    def take_events(self) -> list[SourceEvent]:
        """Return what happened to sources since the last call: retries, new epochs, notices."""
        events = self._prefetcher.events
        return [events.popleft() for _ in range(len(events))]

    def counts(self) -> dict[str, Counter[str]]:
        """Return how many documents of each source were filtered out in this rank's lanes since the start, by
        reason."""
        totals: dict[str, Counter[str]] = defaultdict(Counter)
        for lane in self._lanes.values():
            for name, blocks in lane.queues.items():
                totals[name].update(dict(blocks.filtered))  # a copy: the loader's thread may add a reason meanwhile
        return dict(totals)

    def documents(self) -> dict[str, int]:
        """Return how many documents of each source were packed in this rank's lanes since the start, up to the ends of
        the blocks in use."""
        totals: Counter[str] = Counter()
        for lane in self._lanes.values():
            totals.update({name: blocks.documents for name, blocks in lane.queues.items()})
        return dict(totals)

    def close(self) -> None:
        """Stop reading ahead; waits for workers, but not for a network's time limit."""
        self._stop.set()
        self._prefetcher.close()
        self._slots.release()  # the thread may wait for one
        self._thread.join(CLOSE_SECONDS)

    def _prepare(self) -> None:
        """Make batches ahead; the body of the loader's thread."""
        try:
            while self._slots.acquire() and not self._stop.is_set():
                self._ready.put(self._next_batch())
        except BaseException as error:  # travels to the consumer, whatever it is
            self._ready.put(error)

    def _next_batch(self) -> Batch:
        shape, number, row = self.shape, self._state["batch"], self._state["row"]
        if self.options.weights_at is not None:
            weights = self.options.weights_at(number)
            for lane in self._lanes.values():
                lane.set_weights(weights)
        places: dict[int, list[int]] = defaultdict(list)  # in this batch, of each lane's rows
        for place, lane_number in enumerate(lanes_of_step(row, shape, self.num_lanes)):
            places[lane_number].append(place)
        spans, order = [], []
        owners = np.zeros(math.prod(self._dims), dtype=np.int64)
        for lane_number, lane_places in places.items():
            for span in self._lanes[lane_number].take(lane_places):
                spans.append((span.block, span.first, span.first + len(span.places)))
                owners[span.places] = self.source_names.index(span.source)
                order += span.places

        inputs = np.full((len(owners), shape.row_length), self._eos_id, dtype=np.int64)
        labels = np.full_like(inputs, IGNORE)
        segments = np.full_like(inputs, -1, dtype=np.int32)
        num_tokens = 0
        if spans:
            gathered = gather(spans)
            inputs[order], labels[order], segments[order] = gathered.unpack()
            num_tokens = int(gathered.lengths.sum())
        arrays = (inputs, labels, segments, owners)
        tensors = [torch.from_numpy(array).view(*self._dims, *array.shape[1:]) for array in arrays]
        if self.options.pin_memory:
            tensors = [tensor.pin_memory() for tensor in tensors]
        self._announce_epochs()
        lanes = {str(lane_number): lane.state() for lane_number, lane in self._lanes.items()}
        self._state = {**self._state, "row": row + shape.rows_per_step, "batch": number + 1, "lanes": lanes}
        input_ids, labels, segment_ids, source_ids = tensors
        return Batch(input_ids, labels, segment_ids, source_ids, num_tokens, number, self._state, [])

    def _newest_epoch(self, name: str) -> int:
        return max(lane.queues[name].epoch for lane in self._lanes.values())

    def _announce_epochs(self) -> None:
        for name, epoch in self._epochs.items():
            if (newest := self._newest_epoch(name)) > epoch:
                self._epochs[name] = newest
                counts = sorted(self.counts()[name].items())
                filtered = ", ".join(f"{number:,} {reason}" for reason, number in counts)
                message = f"{name} begins epoch {newest + 1}"
                if filtered:
                    message += f" (documents filtered out so far: {filtered})"
                self._prefetcher.announce(name, "next_pass", message, **{"pass": newest + 1})


def configure_pipeline(
    opened: OpenedSources,
    config: DataConfig,
    tokenizer: TextTokenizer,
    state: LoaderState,
    near_copies: NearCopies | None = None,
    cache: ShardCache | None = None,
) -> PipelineConfig:
    """Return how rows are made of documents. Reads the texts of `config.decontaminate`; raises SourceError."""
    forbidden = forbidden_ngrams(config, cache)
    return PipelineConfig(
        tokenizer=tokenizer,
        seq_length=state["rows"]["seq_length"],
        packing=state["rows"]["packing"],
        filters=Filters(config.min_text_length, config.deduplicate, forbidden, near_copies or NearCopies()),
        num_lanes=state["num_lanes"],
        shuffle=state["shuffle"],
        seed=state["seed"],
        retry_minutes=config.retry_minutes,
        whole_epochs=config.mix_strategy == "sequential",
        shared=frozenset(opened.small),
        windows=state["rows"].get("windows", 1),
    )
