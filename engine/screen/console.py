"""The screen of a run: events and messages as lines or, at a terminal that can, a live panel with the lines above it.

Only rank 0 shows any. Names, messages and samples come from presets, hubs and models, so each is made `literal` first.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console as RichConsole

from engine.run_log import RunLog
from engine.screen.live.display import Display, showing
from engine.screen.live.lines import take
from engine.screen.live.starts import StartTimes
from engine.screen.live.view import RunView, read_view
from engine.screen.streams import OUTPUT, can_draw
from engine.screen.text import Event, literal


class Console:
    """Shows events and messages; one that is not enabled shows nothing.

    All consoles of a process share its terminal: while one of them has a panel, the lines of all go above that.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._rich = RichConsole(file=OUTPUT, soft_wrap=True, highlight=False, emoji=False)
        self._view = RunView()

    def say(self, text: str) -> None:
        self._print(literal(text))

    def warn(self, text: str) -> None:
        self._print(f"[yellow]warning:[/] {literal(text)}")

    def error(self, text: str) -> None:
        """Shows why the process ends, below what the panel showed last."""
        if self.enabled and (display := showing()):
            display.stop()
        self._print(f"[red]stopped:[/] {literal(text)}")

    def show(self, event: Event) -> None:
        """Shows an event: in the panel, and in lines if its kind has any."""
        if not self.enabled:
            return
        if display := showing():
            display.show(event)
            return
        for line in take(event, self._view):
            self._print(line)

    @contextlib.contextmanager
    def live(self, folder: Path, log: RunLog, preset: str) -> Iterator[None]:
        """Draw the panel of the run of `preset`, a name, in `folder` within the block, if the terminal can; `log` gets
        what anybody else, and any rank, writes to it meanwhile."""
        self._view = read_view(folder) if self.enabled else self._view
        self._view.restart()
        if not can_draw():
            yield
        elif not self.enabled:
            with log.instead_of(1, 2):
                yield
        else:
            starts = StartTimes(preset, folder)
            self._view.expected |= starts.expected
            with Display(self._view, log, starts):
                yield

    def asking(self, question: Callable[[str], bool]) -> Callable[[str], bool]:
        """Return what asks `question` without the panel."""

        def ask(sentence: str) -> bool:
            display = showing()
            with display.paused() if display else contextlib.nullcontext():
                return question(sentence)

        return ask

    def _print(self, markup: str) -> None:
        if not self.enabled:
            return
        if display := showing():
            display.message(markup)
        else:
            stamp = "" if OUTPUT.isatty() and can_draw() else f"[dim]{time.strftime('%Y-%m-%d %H:%M:%S')}[/]  "
            self._rich.print(stamp + markup)
