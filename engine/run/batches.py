"""What a run is fed: batches that all ranks have, sources that come and go, weights that follow the losses.

The data position moves with the training, not with the reading: `advance` is called after a step, and what was read
ahead by then is in no state. Every method is called by all ranks.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from engine.config.preset import Preset
from engine.device.machine import choose_num_workers
from engine.device.ranks import Agreement, Ranks
from engine.errors import PresetError, RunError
from engine.events import Metrics
from engine.run.resume import Beginning
from engine.run.step import mean_losses
from sources.loading.adaptive import AdaptiveWeights
from sources.loading.loader import (
    Batch,
    BatchShape,
    Loader,
    LoaderOptions,
    SourceLost,
    WorkerError,
    choose_num_lanes,
    merge_states,
    padded_micro_batch_size,
)
from sources.registry import AllSourcesFailed
from sources.source import SourceError

ADAPTIVE_DELAY = 8  # batches until new source weights count; the loader reads fewer ahead
PATIENCE_SECONDS = 5.0  # for a batch, before a rank lets the others know that it waits


def places_per_pass(preset: Preset, beginning: Beginning, ranks: Ranks) -> int:
    """Rows of one pass: `per_gpu_batch_size`, or more where the lineage was begun with other lanes than these ranks
    can share evenly (those of a new one they can)."""
    train, position = preset.train, (beginning.data_state or {}).get("loader")
    if position is None:
        return train.per_gpu_batch_size
    shape = BatchShape(
        train.per_gpu_batch_size, train.accumulation_steps, preset.model.seq_length, world_size=ranks.world_size
    )
    return padded_micro_batch_size(shape, position["num_lanes"])


class Feed:
    """See the module's docstring. Raises PresetError for a position or a preset that cannot be used together."""

    def __init__(self, preset: Preset, beginning: Beginning, ranks: Ranks, metrics: Metrics):
        self.preset, self.tokenizer, self.ranks, self.metrics = preset, beginning.tokenizer, ranks, metrics
        self.opened, self.cache = beginning.opened, beginning.cache
        saved = beginning.data_state or {}
        self.pins = {**saved.get("pins", {}), **self.opened.pins()}  # of those that are away this time, too
        self.position = saved.get("loader")  # behind the last batch that was trained on
        self.num_workers = choose_num_workers(preset.data.num_workers, ranks.device)
        # Of a new lineage; rank 0 decides, since machines may have different numbers of cores.
        self.num_lanes = ranks.broadcast_json(choose_num_lanes(ranks.world_size, self.num_workers))
        self.adaptive = self._adaptive(saved.get("adaptive"))
        self.loader = self._loader()
        self.source_names, self.num_lanes = self.loader.source_names, self.loader.num_lanes
        sums = (saved.get("adaptive") or {}).get("sums", {})
        # (2, sources), as in StepResult: of the steps since the last adaptive weights.
        self.loss_sums = torch.tensor([sums.get(name, [0, 0]) for name in self.source_names]).T.contiguous()
        self._events: list[dict[str, Any]] = []  # of this rank's sources, not yet told
        self._told: set[tuple] = set()

    def next(self, wishes: Callable[[], Agreement]) -> tuple[Batch | None, Agreement]:
        """The next batch, once every rank has its own, and what the ranks agreed on with it; `wishes` is what this rank
        has to say of other things. No batch where a rank has received a signal.

        A rank whose batch is late says so every few seconds, so that signals are heard and nobody hangs. When a rank
        has lost a source, all go on without it from this very step. Raises AllSourcesFailed, on all ranks.
        """
        item: Batch | SourceLost | None = None
        while True:
            if item is None:
                item = self._take(lambda: wishes().signalled)
                self._events += item.events if isinstance(item, Batch) else self.loader.take_events()
            mine = replace(
                wishes(),
                labels=item.num_tokens if isinstance(item, Batch) else 0,
                waiting=int(item is None),
                lost=int(isinstance(item, SourceLost)),
                events=len(self._events),
            )
            agreed = self.ranks.agree(mine)
            if agreed.events:
                self._tell_events()
            if agreed.signalled:
                return None, agreed
            if agreed.lost:
                self._drop(item)
                item = None
            elif not agreed.waiting:
                if agreed.labels == 0:
                    raise AllSourcesFailed(dict.fromkeys(self.source_names, "holds no text that passes the filters"))
                return item, agreed

    def advance(self, batch: Batch, loss_sums: torch.Tensor) -> None:
        """`batch` is behind the run; `loss_sums` are its StepResult's, which are zeros where the step was skipped."""
        self.position = batch.state
        if not self.adaptive:
            return
        self.loss_sums += loss_sums
        if self.adaptive.after_step(batch.number, int(loss_sums[1].sum())):
            self._weigh_sources(batch.number)

    def state(self) -> dict[str, Any]:
        """What resumes right after the last step, on any number of ranks."""
        states = [state for state in self.ranks.gather_json(self.position) if state]
        adaptive = None
        if self.adaptive:
            sums = dict(zip(self.source_names, self.loss_sums.T.tolist(), strict=True))
            adaptive = {**self.adaptive.state(), "sums": sums}
        return {"pins": self.pins, "loader": merge_states(states) if states else None, "adaptive": adaptive}

    def tell_counts(self) -> None:
        """Write down what the filters passed over since the start, over all ranks."""
        totals: dict[str, Counter[str]] = {}
        for counts in self.ranks.gather_json(self.loader.counts()):
            for name, reasons in counts.items():
                totals.setdefault(name, Counter()).update(reasons)
        for name, reasons in totals.items():
            if reasons:
                told = ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))
                message = f"documents passed over since the start: {told}"
                self.metrics.write("source", name=name, what="passed_over", message=message, counts=dict(reasons))

    def close(self) -> None:
        self.loader.close()

    def _take(self, stopping: Callable[[], bool]) -> Batch | SourceLost | None:
        """What the loader has within a few seconds; a signal cuts the waiting short."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while True:
                batch = self.loader.next(timeout=0.2)
                if batch is not None or stopping() or time.monotonic() > deadline:
                    return batch
        except SourceLost as lost:
            return lost
        except WorkerError as error:
            raise RunError(str(error)) from None

    def _tell_events(self) -> None:
        """Rank 0 writes down what happened to any rank's sources; what several ranks meet is told once."""
        mine, self._events = self._events, []
        for event in itertools.chain.from_iterable(self.ranks.gather_json(mine)):
            told = (event["what"], event["name"], event["pass"] if "pass" in event else event["message"])
            if told not in self._told or event["what"] == "retry":
                self._told.add(told)
                self.metrics.write(**event)

    def _drop(self, item: Batch | SourceLost | None) -> None:
        """All ranks go on without the sources that any of them has lost, from the last step's position."""
        mine = [item.name, item.reason] if isinstance(item, SourceLost) else None
        for name, reason in dict(filter(None, self.ranks.gather_json(mine))).items():
            self.opened = self.opened.without(name, reason)
            message = f"{name} is no longer read: {reason}"
            self.metrics.write("source", name=name, what="dropped", message=message, reason=reason)
        self.loader.close()
        self.opened.check()
        self.loader = self._loader()

    def _weigh_sources(self, number: int) -> None:
        """New weights from the sources' losses since the last ones."""
        _, by_source = mean_losses(self.loss_sums)
        self.loss_sums.zero_()
        losses = {name: loss for name, loss in zip(self.source_names, by_source, strict=True) if loss is not None}
        first, weights = self.adaptive.update(number, losses, dropped=self.opened.failures)
        told = ", ".join(f"{name} {weight / sum(weights.values()):.1%}" for name, weight in weights.items())
        message = f"shares of the tokens from batch {first:,} on: {told}"
        self.metrics.write("source", name="all", what="weights", message=message, weights=weights)

    def _adaptive(self, state: dict[str, Any] | None) -> AdaptiveWeights | None:
        auxiliary = self.preset.auxiliary
        if not auxiliary.enable_adaptive_sources:
            return None
        adaptive = AdaptiveWeights(
            self.preset.data.weights(),
            interval_tokens=auxiliary.adaptive_interval_tokens,
            min_weight=auxiliary.adaptive_min_weight,
            max_weight=auxiliary.adaptive_max_weight,
            smoothing=auxiliary.adaptive_smoothing,
            delay=ADAPTIVE_DELAY,
        )
        if state is not None:
            adaptive.load(state)
        return adaptive

    def _loader(self) -> Loader:
        """A loader that goes on behind the last batch that was trained on."""
        train = self.preset.train
        try:
            shape = BatchShape(
                train.per_gpu_batch_size,
                train.accumulation_steps,
                self.preset.model.seq_length,
                self.ranks.rank,
                self.ranks.world_size,
            )
            options = LoaderOptions(
                num_lanes=self.num_lanes,
                num_workers=self.num_workers,
                seed=train.seed,
                pin_memory=self.ranks.device.type == "cuda",
                cache=self.cache,
                weights_at=self.adaptive.weights_at if self.adaptive else None,
            )
            return Loader(self.opened, self.preset.data, self.tokenizer, shape, options, self.position)
        except ValueError as error:
            raise PresetError(str(error)) from None
        except SourceError as error:
            raise PresetError(f"data.decontaminate: {error.reason.removesuffix('.')}.") from None
