"""A view of a run that never was, for what is drawn of it."""

import copy
import math
from typing import Any

from engine.screen.live.view import RunView
from tests.helpers.run_event import RUN

BUDGET, BEFORE = 100_000_000, 100_000_000  # tokens of the run, and of those before it
NOW = 1_800_000_000.0  # seconds since 1970


def step_event(step: int, loss: float = 4.0, seconds: float = 10.0, **changes: Any) -> dict[str, Any]:
    """An event of 100,000 tokens a step, `seconds` after the one before."""
    tokens = step * 100_000
    event = {
        "event": "step",
        "time": NOW + step * seconds,
        "step": step,
        "steps": 1,
        "tokens": tokens,
        "tokens_total": BEFORE + tokens,
        "share": tokens / BUDGET,
        "loss": loss,
        "lr": 3e-4,
        "grad_norm": 0.52,
        "tokens_per_second": 100_000 / seconds,
        "mfu": 0.312,
        "data_wait": 0.003,
        "eta_seconds": 5.0,
        "memory_bytes": 3 * 2**30,
        "sources": {"wikipedia": loss, "papers": loss + 0.5},
        "source_shares": {"wikipedia": 0.7, "papers": 0.3},
        "auxiliary": {},
    }
    return event | changes


def evaluation_event(step: int, ce: float = 4.1, **changes: Any) -> dict[str, Any]:
    figures = {"ce": ce, "perplexity": math.exp(ce), "bits_per_byte": ce / 3, "tokens": 5000, "seconds": 0.5}
    event = {"event": "evaluation", "time": NOW + step * 10.0, "step": step, "tokens_total": BEFORE + step * 100_000}
    return event | figures | {"sources": {}, "sample": {"prompt": "Once", "text": " upon a time"}} | changes


def run_event(**derived: Any) -> dict[str, Any]:
    event = copy.deepcopy(RUN) | {"time": NOW}
    event["derived"].update({"token_budget": BUDGET, "memory_bytes": 8 * 2**30, **derived})
    return event


def view_of(steps: int, **changes: Any) -> RunView:
    """A run after so many steps with an event each, an evaluation in ten of them and a checkpoint in fifty."""
    view = RunView()
    view.add(run_event())
    for step in range(1, steps + 1):
        loss = 3.0 + 7.0 * math.exp(-step / 20)
        view.add(step_event(step, loss, **changes))
        if step % 10 == 0:
            view.add(evaluation_event(step, loss + 0.1))
        if step % 50 == 0:
            save = {"path": "checkpoints/lm_current.pth", "step": step, "seconds": 1.0}
            view.add({"event": "save", "time": NOW + step * 10, "tokens_total": BEFORE + step * 100_000, **save})
    return view
