"""Batches that all ranks have: the loader behind an agreement between ranks, and sources that are lost on the way.

The data position follows training, not reading: it changes in `advance`, after a step. What was prefetched by then is
in no state.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from engine.data.final_sources import ChangingWeights
from engine.device.ranks import Agreement, Ranks
from engine.errors import PresetError, RunError
from engine.events import EventLog
from sources.config import DataConfig
from sources.loading.loader import Batch, BatchShape, Loader, LoaderOptions, SourceLost, WorkerError, merge_states
from sources.loading.state import LoaderState
from sources.registry import AllSourcesFailed, OpenedSources
from sources.rows.tokenizer import TextTokenizer
from sources.source import SourceError

WAIT_SECONDS = 5.0  # for a batch, until a rank reports to the others that it waits


@dataclass(frozen=True)
class LoaderFactory:
    """Makes this rank's loader, at a start and whenever a source is lost."""

    data: DataConfig
    tokenizer: TextTokenizer
    shape: BatchShape
    options: LoaderOptions

    def make(self, opened: OpenedSources, state: LoaderState | None) -> Loader:
        """Return a loader that continues `state`. Raises PresetError for a state that does not fit the preset."""
        try:
            return Loader(opened, self.data, self.tokenizer, self.shape, self.options, state)
        except ValueError as error:
            raise PresetError(str(error)) from None
        except SourceError as error:
            raise PresetError(f"data.decontaminate: {error.reason.removesuffix('.')}.") from None


class Batches:
    """Every method is collective: all ranks must call it. `saved` is what `state` returned in an earlier run."""

    def __init__(
        self,
        opened: OpenedSources,
        factory: LoaderFactory,
        weights: ChangingWeights,
        saved: dict[str, Any],
        ranks: Ranks,
        log: EventLog,
    ):
        self.opened, self.factory, self.ranks, self.log = opened, factory, ranks, log
        self.weights = weights
        self.pins = {**saved.get("pins", {}), **opened.pins()}  # sources that are unreachable now keep theirs
        self.position: LoaderState | None = saved.get("loader")  # after the last batch that was trained on
        self.loader = factory.make(opened, self.position)
        self.source_names, self.num_lanes = self.loader.source_names, self.loader.num_lanes
        self._events: list[dict[str, Any]] = []  # of this rank's sources, not yet logged
        self._logged: set[tuple[Any, ...]] = set()

    def next(self, report: Callable[[], Agreement], parts: int = 1) -> tuple[Batch | None, Agreement]:
        """Return the next `parts` of the loader's batches as one, and the ranks' agreement; None when the run must
        stop.

        Where a source is lost between them, all start over behind the last step. Raises AllSourcesFailed.
        """
        taken: list[Batch] = []
        labels = 0
        while True:
            loader = self.loader
            batch, agreed = self._next(report)
            if batch is None:
                return None, agreed
            if self.loader is not loader:
                taken, labels = [], 0
            taken.append(batch)
            labels += agreed.labels
            if len(taken) == parts:
                return joined(taken), replace(agreed, labels=labels)

    def _next(self, report: Callable[[], Agreement]) -> tuple[Batch | None, Agreement]:
        """Return the next batch once every rank has its own, and the ranks' agreement; None when the run must stop.

        `report` is what this rank has to say beside its batch. A rank whose batch is late says so every few seconds, so
        that signals are noticed and no rank hangs. When a rank loses a source, all drop it before this very step.
        Raises AllSourcesFailed, on all ranks.
        """
        item: Batch | SourceLost | None = None
        while True:
            if item is None:
                item = self._take(lambda: report().stops)
                self._events += item.events if isinstance(item, Batch) else self.loader.take_events()
            mine = replace(
                report(),
                labels=item.num_tokens if isinstance(item, Batch) else 0,
                waiting=int(item is None),
                lost=int(isinstance(item, SourceLost)),
                events=len(self._events),
            )
            agreed = self.ranks.agree(mine)
            if agreed.events:
                self._log_events()
            if agreed.stops:
                return None, agreed
            if agreed.lost:
                self._drop_sources(item)
                item = None
            elif not agreed.waiting:
                if agreed.labels == 0:
                    raise AllSourcesFailed(dict.fromkeys(self.source_names, "holds no text that passes the filters"))
                assert isinstance(item, Batch)
                return item, agreed

    def advance(self, batch: Batch, loss_sums: torch.Tensor, tokens_before: int) -> None:
        """`batch` has been trained on; `loss_sums` are its StepResult's, zeros where the step was skipped;
        tokens_before: those of the run before the step."""
        self.position = batch.state
        self.weights.after_step(batch.number, loss_sums, self.opened, tokens_before)

    def state(self) -> dict[str, Any]:
        """Return what resumes right after the last step, on any number of ranks."""
        states = [state for state in self.ranks.gather(self.position) if state]
        return {"pins": self.pins, "loader": merge_states(states) if states else None, **self.weights.state()}

    def reading(self) -> dict[str, dict[str, Any]]:
        """Return what was read of each source, over all ranks: of the lineage `tokens` (labels) and the newest `epoch`;
        since the start `documents`, and `filtered` ones by reason."""
        lanes = self.position["lanes"] if self.position else {}
        own = [lane for number, lane in lanes.items() if int(number) % self.ranks.world_size == self.ranks.rank]
        streams = [
            (name, stream["tokens"], stream["state"]) for lane in own for name, stream in lane["streams"].items()
        ]
        positions = [(name, tokens, state["pass"] + 1 if state else 1) for name, tokens, state in streams]
        totals: dict[str, dict[str, Any]] = {
            name: {"tokens": 0, "epoch": 1, "documents": 0, "filtered": Counter()} for name in self.source_names
        }
        mine = (positions, self.loader.documents(), self.loader.counts())
        for positions, documents, filtered in self.ranks.gather(mine):
            for name, tokens, epoch in positions:
                if name in totals:
                    totals[name]["tokens"] += tokens
                    totals[name]["epoch"] = max(totals[name]["epoch"], epoch)
            for name, number in documents.items():
                totals[name]["documents"] += number
                totals[name]["filtered"].update(filtered.get(name, {}))
        return totals

    def log_filtered(self) -> None:
        """Log how many documents the filters removed since the start, over all ranks."""
        totals: dict[str, Counter[str]] = {}
        for counts in self.ranks.gather(self.loader.counts()):
            for name, reasons in counts.items():
                totals.setdefault(name, Counter()).update(reasons)
        for name, reasons in totals.items():
            if reasons:
                counted = ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))
                message = f"filtered documents since the start: {counted}"
                self.log.write("source", name=name, what="passed_over", message=message, counts=dict(reasons))

    def close(self) -> None:
        self.loader.close()

    def _take(self, stopping: Callable[[], bool]) -> Batch | SourceLost | None:
        """Return what the loader has within WAIT_SECONDS; a signal ends the wait."""
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            while True:
                batch = self.loader.next(timeout=0.2)
                if batch is not None or stopping() or time.monotonic() > deadline:
                    return batch
        except SourceLost as lost:
            return lost
        except WorkerError as error:
            raise RunError(str(error)) from None

    def _log_events(self) -> None:
        """Log what happened to any rank's sources; what several ranks report is logged once."""
        mine, self._events = self._events, []
        for event in itertools.chain.from_iterable(self.ranks.gather(mine)):
            key = (event["what"], event["name"], event["pass"] if "pass" in event else event["message"])
            if key not in self._logged or event["what"] == "retry":
                self._logged.add(key)
                self.log.write(**event)

    def _drop_sources(self, item: Batch | SourceLost | None) -> None:
        """Drop the sources that any rank has lost, and continue from the last step's position."""
        mine = [item.name, item.reason] if isinstance(item, SourceLost) else None
        for name, reason in dict(filter(None, self.ranks.gather(mine))).items():
            self.opened = self.opened.without(name, reason)
            message = f"{name} is no longer read: {reason}"
            self.log.write("source", name=name, what="dropped", message=message, reason=reason)
        self.loader.close()
        self.opened.check()
        self.loader = self.factory.make(self.opened, self.position)


def joined(batches: list[Batch]) -> Batch:
    """Batches of one rank as one, of all their micro-batches, that resumes behind the last one."""
    *_, last = batches
    if len(batches) == 1:
        return last

    def together(name: str) -> torch.Tensor:
        tensor = torch.cat([getattr(batch, name) for batch in batches])
        return tensor.pin_memory() if getattr(last, name).is_pinned() else tensor

    tensors = {name: together(name) for name in ("input_ids", "labels", "segment_ids", "source_ids")}
    return replace(last, **tensors, num_tokens=sum(batch.num_tokens for batch in batches))
