"""Batches, each with the state that resumes right after it.

Row i of a run comes from lane i % V, and rank r of W takes the rows i with i % W == r, so the same rows are seen in the
same steps whatever W is (as long as W divides V). A background thread reads, tokenises and packs ahead (the libraries
under it release the interpreter's lock); what it has prepared but not handed out is in no state, so reading ahead
changes nothing.
"""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sources.config import DataConfig
from sources.lanes import Lane, Shared, choose_num_lanes
from sources.packing import IGNORE
from sources.registry import AllSourcesFailed, OpenedSources
from sources.source import JSON
from sources.tokenizer import TextTokenizer

__all__ = ["Batch", "Loader", "choose_num_lanes", "merge_states"]

CLOSE_SECONDS = 3.0


@dataclass(frozen=True)
class Batch:
    """One optimizer step's worth for this rank; A accumulation steps of B rows of T tokens."""

    input_ids: torch.Tensor  # (A, B, T) int64
    labels: torch.Tensor  # (A, B, T) int64, aligned with input_ids; -100 is padding
    source_ids: torch.Tensor  # (A, B) int64 index into Loader.source_names
    num_tokens: int  # labels that are not padding
    state: dict[str, JSON]  # this rank's lanes; resumes right after this batch
    events: list[dict[str, Any]]  # what happened to sources since the previous batch


class Loader:
    """An iterator over one rank's batches, without end; when this rank has nothing to read, of padding alone.

    `state` is a lineage's merged state (or, with one rank, a batch's). Raises ValueError when `world_size` does not
    divide the lineage's number of lanes, and AllSourcesFailed (also while iterating) when no source is left.
    """

    def __init__(
        self,
        opened: OpenedSources,
        config: DataConfig,
        tokenizer: TextTokenizer,
        *,
        seq_length: int,
        micro_batch_size: int,
        accumulation_steps: int,
        rank: int = 0,
        world_size: int = 1,
        num_lanes: int = 8,
        state: dict[str, JSON] | None = None,
        pin_memory: bool = False,
        prefetch: int = 2,
    ):
        opened.check()
        self.opened = opened
        self.source_names = [spec.source_name for spec in config.sources]
        self.num_lanes = num_lanes if state is None else state["num_lanes"]
        if self.num_lanes % world_size:
            worlds = ", ".join(str(world) for world in range(1, self.num_lanes + 1) if self.num_lanes % world == 0)
            raise ValueError(
                f"This run's data is divided among {self.num_lanes} lanes, which {world_size} processes cannot share "
                f"evenly; start it with one of these numbers of processes: {worlds}."
            )
        self.shape = (accumulation_steps, micro_batch_size, seq_length)
        self.rank, self.world_size, self.pin_memory = rank, world_size, pin_memory
        self._stop = threading.Event()
        self._shared = Shared(config, tokenizer, seq_length, self.num_lanes, stopping=self._stop.is_set)
        kept = state["lanes"] if state else {}
        self._lanes = {
            number: Lane(number, opened.sources, self._shared, kept.get(str(number)))
            for number in range(rank, self.num_lanes, world_size)
        }
        self._row = state["row"] if state else 0  # of the world_size rows from here on, one is this rank's
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=max(1, prefetch))
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._prepare, name="loader", daemon=True)
            self._thread.start()
        while True:
            item = self._ready.get()
            if isinstance(item, BaseException):
                self._ready.put(item)  # whoever asks again gets the same answer
                raise item
            yield item

    def close(self) -> None:
        """Stop reading ahead; iterating afterwards is an error of the caller.

        Waits for the thread, but not for a network's time limit: it is a daemon and ends with the process.
        """
        self._stop.set()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

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
        accumulation_steps, micro_batch_size, seq_length = self.shape
        rows = accumulation_steps * micro_batch_size
        inputs = np.full((rows, seq_length), self._shared.tokenizer.eos_id, dtype=np.int64)
        labels = np.full((rows, seq_length), IGNORE, dtype=np.int64)
        owners = np.zeros(rows, dtype=np.int64)
        for position in range(rows):
            found = self._next_row()
            if found is None:
                break
            name, inputs[position], labels[position] = found
            owners[position] = self.source_names.index(name)
        tensors = [
            torch.from_numpy(inputs).view(self.shape),
            torch.from_numpy(labels).view(self.shape),
            torch.from_numpy(owners).view(self.shape[:2]),
        ]
        if self.pin_memory:
            tensors = [tensor.pin_memory() for tensor in tensors]
        return Batch(*tensors, int((labels != IGNORE).sum()), self._state(), self._take_events())

    def _next_row(self) -> tuple[str, np.ndarray, np.ndarray] | None:
        """Return the next row of this rank from the lane whose turn it is, or from the next one that has data."""
        turn = self._row + (self.rank - self._row) % self.world_size
        self._row += self.world_size
        for step in range(len(self._lanes)):
            row = self._lanes[(turn + step * self.world_size) % self.num_lanes].row()
            if row is not None:
                return row
        failed = self.opened.failures | self._shared.dropped
        if all(name in failed for name in self.source_names):
            raise AllSourcesFailed({name: failed[name] for name in self.source_names})
        return None

    def _state(self) -> dict[str, JSON]:
        lanes = {str(number): lane.state() for number, lane in self._lanes.items()}
        return _with_totals({"num_lanes": self.num_lanes, "row": self._row, "lanes": lanes})

    def _take_events(self) -> list[dict[str, Any]]:
        for name, source in self.opened.sources.items():
            for notice in source.notices:
                self._shared.announce(name, "notice", notice)
            source.notices.clear()
        events, self._shared.events = self._shared.events, []
        return events


def merge_states(states: list[dict[str, JSON]]) -> dict[str, JSON]:
    """Join the states that the ranks' batches of one step carry into the state of the lineage.

    It resumes on any number of ranks that divides the number of lanes. Raises ValueError when they do not belong
    together.
    """
    lanes = {number: lane for state in states for number, lane in state["lanes"].items()}
    num_lanes = states[0]["num_lanes"]
    if any(state["num_lanes"] != num_lanes or state["row"] != states[0]["row"] for state in states):
        raise ValueError("The data states of the ranks come from different steps and cannot be joined.")
    if len(lanes) != num_lanes:
        raise ValueError(f"The data states of the ranks hold {len(lanes)} of {num_lanes} lanes; one rank's is missing.")
    return _with_totals({"num_lanes": num_lanes, "row": states[0]["row"], "lanes": lanes})


def _with_totals(state: dict[str, JSON]) -> dict[str, JSON]:
    """Add the tokens delivered per source since the lineage began."""
    totals: dict[str, int] = {}
    for lane in state["lanes"].values():
        for name, stream in lane["streams"].items():
            totals[name] = totals.get(name, 0) + stream["tokens"]
    return state | {"tokens_per_source": totals}
