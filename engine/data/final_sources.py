"""Other source weights for the end of a run: text that a model is to remember best is often read last.

The step in which a run passes 1 - data.final_fraction of its budget decides it, for the batches DELAY_STEPS later,
since the loader has made a few ahead by then. So a run that is resumed reads the same rows.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from engine.data.adaptive import DELAY_STEPS, AdaptiveSources
from engine.events import EventLog
from sources.config import DataConfig
from sources.registry import OpenedSources

NEXT_TO_NOTHING = 1e-9  # the weight of a source that is not to be read: it counts once the others are lost


class FinalSourcesState(TypedDict):
    run: int
    first: int  # the batch from which on the weights count


class FinalSources:
    """Every rank has one, and all decide alike. `saved` is what `state` returned, in this run or an earlier one."""

    def __init__(self, data: DataConfig, token_budget: int, run: int, log: EventLog, saved: FinalSourcesState | None):
        self._run, self._log = run, log
        self._begins = (1 - data.final_fraction) * token_budget
        final = data.final_source_weights
        self.weights = {spec.source_name: final.get(spec.source_name) or NEXT_TO_NOTHING for spec in data.sources}
        self._base = data.weights()
        self._first = saved["first"] if saved is not None and saved["run"] == run else None

    def weights_at(self, number: int, weights: dict[str, float]) -> dict[str, float]:
        """`weights` that would count for a batch -> those that do; where the former follow the losses, so do these."""
        if self._first is None or number < self._first:
            return weights
        return {name: final * weights[name] / self._base[name] for name, final in self.weights.items()}

    def after_step(self, batch_number: int, tokens: int) -> None:
        """`tokens`: of the run before the step."""
        if self._first is not None or tokens < self._begins:
            return
        self._first = batch_number + DELAY_STEPS
        total = sum(self.weights.values())
        shares = ", ".join(f"{name} {weight / total:.1%}" for name, weight in self.weights.items())
        message = f"the end of the run: token shares from batch {self._first:,} on: {shares}"
        self._log.write("source", name="all", what="weights", message=message, weights=self.weights)

    def state(self) -> FinalSourcesState | None:
        """Return what a restart needs; None before the decision."""
        return None if self._first is None else {"run": self._run, "first": self._first}


@dataclass(frozen=True)
class ChangingWeights:
    """What changes the sources' weights during a run; `base`: the preset's."""

    base: dict[str, float]
    adaptive: AdaptiveSources | None
    final: FinalSources | None

    def weights_at(self, number: int) -> dict[str, float]:
        """The weights of a batch; may be called from another thread."""
        weights = self.adaptive.weights.weights_at(number) if self.adaptive else self.base
        return self.final.weights_at(number, weights) if self.final else weights

    def after_step(self, batch_number: int, loss_sums: torch.Tensor, opened: OpenedSources, tokens: int) -> None:
        """`loss_sums`: the StepResult's; `tokens`: of the run before the step."""
        if self.adaptive:
            self.adaptive.after_step(batch_number, loss_sums, opened)
        if self.final:
            self.final.after_step(batch_number, tokens)

    def state(self) -> dict[str, Any]:
        """Return what a restart needs, by the keys of RunState."""
        adaptive = self.adaptive.state() if self.adaptive else None
        return {"adaptive": adaptive, "final_sources": self.final.state() if self.final else None}
