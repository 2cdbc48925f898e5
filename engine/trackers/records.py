"""What a tracker shows of an event: numbers and texts at a step, under names that all trackers share."""

import math
from dataclasses import dataclass
from typing import Any

from engine.events import Event

STEP_FIGURES = {  # of a `step` event: its key -> the name of the curve
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "tokens_per_second": "train/tokens_per_second",
    "mfu": "train/mfu",
    "data_wait": "train/data_stall",
    "core_grad_norm": "lookahead/gradient_norm",
    "core_left_out": "lookahead/steps_left_out",
}
EVALUATION_FIGURES = {
    "ce": "validation/loss",
    "perplexity": "validation/perplexity",
    "bits_per_byte": "validation/bits_per_byte",
}
NOTES = {  # events that are a sentence
    "resume": "resumed {message}",
    "rollback": "rollback: {reason}, after step {step:,}",
    "spike": "spike: loss {loss:.4f} is above {threshold:.4f}",
    "skip": "skipped: {reason} (loss {loss:.4f})",
    "source": "source {name}: {message}",
    "advice": "advice: {message}",
}


@dataclass(frozen=True)
class Record:
    """What one event adds to a tracker's run. `step` and `tokens` count over all runs of a model; None: as before."""

    kind: str
    time: float  # seconds since 1970
    step: int | None
    tokens: int | None
    scalars: dict[str, float]
    texts: dict[str, str]


def record_of(event: Event) -> Record | None:
    """Return what trackers show of an event; None for a kind of which they show nothing."""
    kind, scalars, texts = event["event"], {}, {}
    if kind == "step":
        scalars = _named(event, STEP_FIGURES) | _each(event["auxiliary"], "lookahead")
        if len(event["sources"]) > 1:
            scalars |= _each(event["sources"], "train/loss_of")
    elif kind == "evaluation":
        scalars = _named(event, EVALUATION_FIGURES)
        if len(event["sources"]) > 1:
            scalars |= _each({name: one["ce"] for name, one in event["sources"].items()}, "validation/loss_of")
        if sample := event.get("sample"):
            texts = {"sample": sample["prompt"] + sample["text"]}
    elif kind in NOTES:
        try:
            texts = {"notes": NOTES[kind].format_map(event)}
        except (KeyError, TypeError, ValueError):  # a figure that is not finite has no format
            texts = {"notes": f"{kind}: {event.get('reason', '')}"}
    else:
        return None
    # The steps of a rollback are those that it gives up, and of spikes and skips those that may not come.
    counts = kind in ("step", "evaluation", "resume")
    step = event["step"] if counts else None
    return Record(kind, event["time"], step, event.get("tokens_total") if counts else None, scalars, texts)


def _named(event: Event, names: dict[str, str]) -> dict[str, float]:
    return {name: event[key] for key, name in names.items() if _is_number(event.get(key))}


def _each(figures: dict[str, Any], prefix: str) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in figures.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
