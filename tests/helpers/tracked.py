"""Events of a run, as its event log hands them to trackers."""

import time
from typing import Any

Event = dict[str, Any]


def event(kind: str, **values: Any) -> Event:
    return {"event": kind, "time": time.time(), **values}


def run_event() -> Event:
    return event("run", preset={"name": "tiny", "train": {"learning_rate": 1e-3}}, derived={"run": 1}, machine="CPU")


def step_event(step: int, **values: Any) -> Event:
    """The event of a step of 100 tokens; of the fourth the loss is 4.60123."""
    figures = {
        "loss": round(5.00123 - step / 10, 5),
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 10.0,
        "mfu": None,
    }
    rest = {"data_wait": 0.0, "sources": {"notes": 4.0}, "auxiliary": {}}
    return event("step", step=step, tokens_total=100 * step, **{**figures, **rest, **values})


def evaluation_event(step: int) -> Event:
    figures = {"ce": 3.0, "perplexity": 20.0, "bits_per_byte": 1.0, "sources": {"notes": {"ce": 3.0}}}
    sample = {"prompt": "Once <b>", "text": " upon a time\nthere"}
    return event("evaluation", step=step, tokens_total=100 * step, **figures, sample=sample)


def resume_event(step: int) -> Event:
    return event("resume", step=step, tokens_total=100 * step, message="checkpoints/lm_current.pth")


def first_start() -> list[Event]:
    """Five steps and an evaluation."""
    return [run_event(), *map(step_event, range(1, 6)), evaluation_event(5)]


def second_start() -> list[Event]:
    """From a checkpoint at step 3 on, since the process was killed after step 5."""
    return [resume_event(3), run_event(), *map(step_event, range(4, 9)), evaluation_event(8)]
