"""Whether tokenizers and sources can be read now, asked by threads while the menu is on the screen.

A hub may take seconds to answer, or to be given up on. What several presets share is asked once.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from engine.errors import first_line
from engine.screen.menu.entries import MenuEntry
from sources.config import SourceSpec, TrainBPE
from sources.source import READER

PROBE_SECONDS = 3.0  # for one source
THREADS = 16


class Question(NamedTuple):
    """What is asked once: a source's specification or, without a name, a tokenizer; and who wants to know."""

    name: str | None
    spec: str | TrainBPE | SourceSpec
    entries: list[MenuEntry]


class StateChecks:
    """Fills in the `reasons` of entries; `changed` is called after each, by the thread that found it."""

    def __init__(self, entries: Sequence[MenuEntry], changed: Callable[[], None] = lambda: None):
        self._entries, self._changed = entries, changed
        self._waiting: SimpleQueue[Question] = SimpleQueue()
        questions = list(_questions(entries))
        for question in questions:
            self._waiting.put(question)
        for _ in range(min(THREADS, len(questions))):
            # The process may end while one waits for a network: see engine/control/exit.py.
            threading.Thread(target=self._run, name=READER, daemon=True).start()

    @property
    def done(self) -> bool:
        return all(entry.checked for entry in self._entries)

    def wait(self, seconds: float) -> bool:
        """Wait until every entry is checked, for at most `seconds`; return whether they are."""
        deadline = time.monotonic() + seconds
        while not self.done and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.done

    def _run(self) -> None:
        while True:
            try:
                question = self._waiting.get_nowait()
            except Empty:
                return
            reason = _reason(question)
            for entry in question.entries:
                entry.reasons[question.name] = reason
            self._changed()


def _questions(entries: Sequence[MenuEntry]) -> Iterator[Question]:
    found: dict[str, Question] = {}
    for entry in entries:
        if entry.preset is None:
            continue
        data = entry.preset.data
        specs = [(None, data.tokenizer), *((spec.source_name, spec) for spec in data.sources)]
        for name, spec in specs:
            found.setdefault(f"{name} {spec!r}", Question(name, spec, [])).entries.append(entry)
    yield from found.values()


def _reason(question: Question) -> str:
    """Why a tokenizer or a source cannot be read now; empty where it can. Takes at most PROBE_SECONDS."""
    from sources.registry import probe  # with the libraries that read files, after the first screen
    from sources.rows.tokenizer import tokenizer_available

    try:
        if isinstance(question.spec, str | TrainBPE):
            return tokenizer_available(question.spec, PROBE_SECONDS) or ""
        return probe(question.spec, PROBE_SECONDS) or ""
    except Exception as error:  # whatever it is, the other presets can be chosen
        return f"it cannot be checked ({first_line(error)})"
