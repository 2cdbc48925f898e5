"""Writes the page beside the events of a run, at each evaluation, at each save and at its end."""

from collections.abc import Callable
from pathlib import Path

import storage
from engine.events import REPORT_NAME, Listener, Sink
from engine.screen.report.history import History, read_history
from engine.screen.report.page import page
from engine.screen.text import Event


def listener(folder: Callable[[], Path], shown: Path, sink: Sink) -> Listener:
    """What writes the page after each evaluation and save of a run and at its end, in the folder of that moment.

    metrics.jsonl is read once, then each event is added. The first evaluation says where the page is: `shown` is the
    folder as a person knows it. A failure is a warning.
    """
    history: History | None = None
    named = False

    def update(event: Event) -> None:
        nonlocal history, named
        writes = event["event"] in ("evaluation", "save", "end")
        try:
            if history is not None:
                history.add(event)
            elif writes:
                history = read_history(folder())  # this event is in it
            if history is None or not writes:
                return
            storage.write_atomic(folder() / REPORT_NAME, page(history).encode())
            if event["event"] == "evaluation" and not named:
                named = True
                sink.say(f"The report is {shown / REPORT_NAME}: open it in a browser. Every evaluation rewrites it.")
        except Exception as error:  # a full disk, or a line of metrics.jsonl with a flipped bit
            why = storage.os_error_reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            sink.warn(f"{REPORT_NAME} could not be written ({why}). Training goes on without it.")

    return update
