"""Batches, each with the state that resumes right after it.

Workers make blocks (workers.py), lanes say whose row is next (lanes.py), and a thread here puts rows together into
batches, a few ahead of training. What is prepared but not handed out is in no state, so neither the depth of this queue
nor the number of workers or ranks changes a run.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from shard_cache import ShardCache
from sources.caching import cached_sources
from sources.config import DataConfig
from sources.loading.lanes import Lane, SourceLost, choose_num_lanes, lanes_of_step, rows_per_pass
from sources.loading.prefetch import WorkerError, Workers
from sources.registry import OpenedSources, forbidden_texts
from sources.rows.filters import Filters, long_ngrams
from sources.rows.packing import IGNORE, gather
from sources.rows.pipeline import Recipe
from sources.rows.tokenizer import TextTokenizer
from sources.source import JSON, PER_ROW

__all__ = ["Batch", "Loader", "SourceLost", "WorkerError", "choose_num_lanes", "merge_states", "rows_per_pass"]

STATE_FORMAT = 3
PREFETCH = 2  # batches that wait; with those under way, fewer than the delay of adaptive weights
CLOSE_SECONDS = 3.0


@dataclass(frozen=True)
class Batch:
    """One optimizer step's worth for this rank; A accumulation steps of B rows (lanes.rows_per_pass) of T tokens."""

    input_ids: torch.Tensor  # (A, B, T) int64
    labels: torch.Tensor  # (A, B, T) int64, aligned with input_ids; -100 is padding
    segment_ids: torch.Tensor  # (A, B, T) int32: the pieces of documents in a row, from 0; -1 is padding
    source_ids: torch.Tensor  # (A, B) int64 index into Loader.source_names
    num_tokens: int  # labels that are not padding
    number: int  # of this batch in its lineage, from 0
    state: dict[str, JSON]  # this rank's lanes; resumes right after this batch
    events: list[dict[str, Any]]  # what happened to sources since the previous batch


@dataclass(frozen=True)
class BatchShape:
    micro_batch_size: int
    grad_accumulation_steps: int
    seq_length: int
    rank: int = 0
    world_size: int = 1

    @property
    def rows_per_step(self) -> int:
        return self.micro_batch_size * self.grad_accumulation_steps * self.world_size


@dataclass(frozen=True)
class LoaderOptions:
    num_lanes: int | None = None
    num_workers: int = 0
    seed: int = 0
    pin_memory: bool = False
    cache: ShardCache | None = None
    weights_at: Callable[[int], dict[str, float]] | None = None


def padded_micro_batch_size(shape: BatchShape, num_lanes: int) -> int:
    return rows_per_pass(shape.micro_batch_size, shape.grad_accumulation_steps, shape.world_size, num_lanes)


class Loader:
    """One rank's batches, without end; when this rank has nothing to read, of padding alone.

    A step takes `micro_batch_size` x `accumulation_steps` x `world_size` rows, whichever ranks they belong to.
    `state` is a lineage's merged state (or, with one rank, a batch's). `weights_at(number)` gives the sources' weights
    for that batch and is asked a few batches ahead. Raises ValueError when there are more ranks than lanes or the
    state cannot be continued, and AllSourcesFailed when no source is open.
    """

    def __init__(self, opened, config, tokenizer, shape, options=None, state=None):
        options = options or LoaderOptions()
        micro_batch_size, accumulation_steps, seq_length = (
            shape.micro_batch_size,
            shape.grad_accumulation_steps,
            shape.seq_length,
        )
        rank, world_size, num_lanes, num_workers = shape.rank, shape.world_size, options.num_lanes, options.num_workers
        seed, cache, weights_at, pin_memory = options.seed, options.cache, options.weights_at, options.pin_memory
        opened.check()
        if state is not None and state.get("format") != STATE_FORMAT:
            raise ValueError("The data position was saved by another version of this program and cannot be continued.")
        for source in opened.sources.values():  # what was read for other purposes
            for reason in PER_ROW:
                source.counts.pop(reason, None)
        self.source_names = [spec.source_name for spec in config.sources]
        self.opened, self.rank, self.world_size, self.pin_memory = opened, rank, world_size, pin_memory
        self._head = state_head(config, seq_length, seed, num_lanes or choose_num_lanes(world_size, num_workers), state)
        self.num_lanes = self._head["num_lanes"]
        if world_size > self.num_lanes:
            raise ValueError(
                f"This run's data is divided among {self.num_lanes} lanes, one process each at the most; "
                f"start it with at most {self.num_lanes} processes."
            )
        capacity = rows_per_pass(micro_batch_size, accumulation_steps, world_size, self.num_lanes)
        self._shape = (accumulation_steps, capacity, seq_length)
        self._rows_per_step = micro_batch_size * accumulation_steps * world_size
        self._recipe = make_recipe(opened, config, tokenizer, self._head)
        names = [name for name in self.source_names if name in opened.sources]
        lanes = range(rank, self.num_lanes, world_size)
        cached = cached_sources(cache, opened.sources, config, self._recipe) if cache is not None else {}
        self._workers = Workers(opened.sources, self._recipe, cached, min(num_workers, len(lanes)))
        kept = (state or {}).get("lanes", {})
        if state is not None and state["rows"] != self._head["rows"]:
            kept = {lane: _begin_blocks_again(lane_state) for lane, lane_state in kept.items()}
            self._announce("all", "notice", "rows are packed in another way now: each lane repeats at most a block")
        weights = None if config.mix_strategy == "sequential" else config.weights()
        self._weights_at = weights_at
        self._lanes = {
            number: Lane(number, names, weights, seq_length, self._workers, kept.get(str(number))) for number in lanes
        }
        self._row = state["row"] if state else 0
        self._number = state["batch"] if state else 0
        self._newest_pass = {name: max(lane.queues[name].number for lane in self._lanes.values()) for name in names}
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=PREFETCH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._prepare, name="loader", daemon=True)
        self._thread.start()

    def next(self, timeout: float | None = None) -> Batch | None:
        """Return the next batch, or None when it is not ready within `timeout` seconds (None: waits).

        Raises SourceLost when a source cannot be read any more, then and on every later call: the caller closes this
        loader and makes one without the source, on all ranks, from the state of the last batch that was used.
        """
        try:
            item = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            self._ready.put(item)
            raise item
        return replace(item, events=self.take_events())

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    def take_events(self) -> list[dict[str, Any]]:
        """Return what happened since the last call: retries, new passes, notices."""
        events = []
        while self._workers.events:
            events.append(self._workers.events.popleft())
        return events

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many documents each source's lanes passed over since the start, by reason."""
        totals: dict[str, dict[str, int]] = {}
        for lane in self._lanes.values():
            for name, source_queue in lane.queues.items():
                total = totals.setdefault(name, {})
                for reason, number in list(source_queue.counts.items()):  # the loader's thread may add one meanwhile
                    total[reason] = total.get(reason, 0) + number
        return totals

    def close(self) -> None:
        """Stop reading ahead; waits for workers, but not for a network's time limit."""
        self._stop.set()
        self._workers.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _announce(self, name: str, what: str, message: str) -> None:
        self._workers.events.append({"event": "source", "name": name, "what": what, "message": message})

    def _prepare(self) -> None:
        item: Batch | BaseException
        while not self._stop.is_set():
            try:
                item = self._next_batch()
            except BaseException as error:  # travels to the consumer, whatever it is
                item = error
            self._ready.put(item)
            if isinstance(item, BaseException):
                return

    def _next_batch(self) -> Batch:
        accumulation_steps, capacity, seq_length = self._shape
        rows = accumulation_steps * capacity
        if self._weights_at is not None:
            weights = self._weights_at(self._number)
            for lane in self._lanes.values():
                lane.mixer.weights = weights
        turns = lanes_of_step(self._row, self._rows_per_step, self.rank, self.world_size, self.num_lanes)
        places: dict[int, list[int]] = defaultdict(list)  # of each lane's rows in the batch
        for place, lane in enumerate(turns):
            places[lane].append(place)
        runs, order = [], []
        owners = np.zeros(rows, dtype=np.int64)
        for lane, its_places in places.items():
            for run in self._lanes[lane].take(len(its_places)):
                taken = [its_places[turn] for turn in run.turns]
                owners[taken] = self.source_names.index(run.source)
                runs.append((run.block, run.first, run.first + len(taken)))
                order += taken

        inputs = np.full((rows, seq_length), self._recipe.tokenizer.eos_id, dtype=np.int64)
        labels = np.full((rows, seq_length), IGNORE, dtype=np.int64)
        segments = np.full((rows, seq_length), -1, dtype=np.int32)
        num_tokens = 0
        if runs:
            gathered = gather(runs)
            inputs[order], labels[order], segments[order] = gathered.unpack()
            num_tokens = int(gathered.lengths.sum())
        tensors = [torch.from_numpy(array).view(self._shape) for array in (inputs, labels, segments)]
        tensors.append(torch.from_numpy(owners).view(self._shape[:2]))
        if self.pin_memory:
            tensors = [tensor.pin_memory() for tensor in tensors]
        number, self._number = self._number, self._number + 1
        self._row += self._rows_per_step
        self._tell_passes()
        return Batch(*tensors, num_tokens, number, self._state(), [])

    def _tell_passes(self) -> None:
        for name, newest in self._newest_pass.items():
            number = max(lane.queues[name].number for lane in self._lanes.values())
            if number > newest:
                self._newest_pass[name] = number
                message = f"{name} begins pass {number + 1}{describe(self.counts().get(name, {}))}"
                self._workers.events.append(
                    {"event": "source", "name": name, "what": "next_pass", "message": message, "pass": number + 1}
                )

    def _state(self) -> dict[str, JSON]:
        lanes = {str(number): lane.state() for number, lane in self._lanes.items()}
        return {**self._head, "row": self._row, "batch": self._number, "lanes": lanes}


def state_head(
    config: DataConfig, seq_length: int, seed: int, num_lanes: int, state: dict[str, JSON] | None
) -> dict[str, JSON]:
    """What a lineage's states have in common; what shapes a pass is the lineage's own, whatever the preset says now."""
    lineage = state or {
        "seed": seed,
        "shuffle": config.shuffle,
        "num_lanes": num_lanes,
    }
    return {
        "format": STATE_FORMAT,
        **{key: lineage[key] for key in ("seed", "shuffle", "num_lanes")},
        "rows": {"seq_length": seq_length, "packing": config.packing},
    }


def make_recipe(opened: OpenedSources, config: DataConfig, tokenizer: TextTokenizer, head: dict[str, JSON]) -> Recipe:
    """What makes rows of documents; reads the texts of `data.decontaminate`."""
    return Recipe(
        tokenizer=tokenizer,
        seq_length=head["rows"]["seq_length"],
        packing=config.packing,
        filters=Filters(config.min_text_length, config.deduplicate, long_ngrams(forbidden_texts(config))),
        num_lanes=head["num_lanes"],
        shuffle=head["shuffle"],
        seed=head["seed"],
        retry_minutes=config.retry_minutes,
        whole_passes=config.mix_strategy == "sequential",
        replicated=frozenset(opened.small),
    )


def merge_states(states: list[dict[str, JSON]]) -> dict[str, JSON]:
    """Join the states that the ranks' batches of one step carry into the state of the lineage, which resumes on any
    number of ranks; adds the tokens delivered per source. Raises ValueError when they do not belong together."""
    lanes = {number: lane for state in states for number, lane in state["lanes"].items()}
    first = states[0]
    if any((state["num_lanes"], state["row"]) != (first["num_lanes"], first["row"]) for state in states):
        raise ValueError("The data states of the ranks come from different steps and cannot be joined.")
    if len(lanes) != first["num_lanes"]:
        raise ValueError(
            f"The data states of the ranks hold {len(lanes)} of {first['num_lanes']} lanes; one rank's is missing."
        )
    totals: dict[str, int] = {}
    for lane in lanes.values():
        for name, stream in lane["streams"].items():
            totals[name] = totals.get(name, 0) + stream["tokens"]
    return {**first, "lanes": lanes, "tokens_per_source": totals}


def describe(counts: dict[str, int]) -> str:
    """Say in brackets what was passed over, or nothing."""
    told = ", ".join(f"{number:,} {reason}" for reason, number in sorted(counts.items()))
    return f" (documents passed over so far: {told})" if told else ""


def _begin_blocks_again(lane: JSON) -> JSON:
    return {**lane, "streams": {name: {**stream, "taken": 0} for name, stream in lane["streams"].items()}}
