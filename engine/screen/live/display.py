"""The panel on a terminal: a thread draws it and prints the lines above it, so that training waits for neither.

It draws when an event has come, at most every PERIOD, and otherwise once in IDLE for the clock times; before the first
step it draws every PERIOD for the spinner. The terminal's size is looked at each time instead of by SIGWINCH,
since a signal would also interrupt the system calls of the training thread.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.run_log import RunLog
from engine.screen.live.keyboard import Keyboard
from engine.screen.live.lines import take
from engine.screen.live.panel import panel
from engine.screen.live.starts import StartTimes
from engine.screen.live.view import RunView, stage_now
from engine.screen.streams import own_terminal
from engine.screen.text import Event

PERIOD, IDLE = 0.5, 10.0  # seconds
KEPT_LINES = 200  # that are printed again when the terminal has become narrower
USUAL_SIZE = os.terminal_size((80, 24))  # where a terminal does not say
ROWS_OF_LINES = 2  # of the terminal, which the panel leaves free
CLEAR = "\x1b[H\x1b[J"  # unlike rich's Control.clear, this pushes nothing into the terminal's scrollback
IN_PANEL = ("step", "save", "stage")  # events that need no lines, where there is a panel

_showing: "Display | None" = None


def showing() -> "Display | None":
    """The display that has this process's terminal now."""
    return _showing


class Display:
    """A context manager. `show` and `message` may be called by any thread and return at once."""

    def __init__(self, view: RunView, log: RunLog | None = None, starts: StartTimes | None = None):
        self.view, self._log, self._starts = view, log, starts
        self._posted: deque[Event | tuple[float, str]] = deque()
        self._printed: deque[Table] = deque(maxlen=KEPT_LINES)
        self._drawing = threading.RLock()
        self._resources: contextlib.ExitStack | None = None
        self._keyboard: Keyboard | None = None
        self._drawn_at = 0.0

    def show(self, event: Event) -> None:
        self._posted.append(event)

    def message(self, markup: str) -> None:
        self._posted.append((time.time(), markup))

    def start(self) -> None:
        """Take the terminal: standard output and standard error go to the log from now on."""
        global _showing
        with contextlib.ExitStack() as stack:
            self._terminal: TextIO = stack.enter_context(own_terminal())
            self._console = Console(file=self._terminal, force_terminal=True, highlight=False, emoji=False)
            self._size = size_of(self._terminal)
            if self._log is not None:
                stack.enter_context(self._log.instead_of(1, 2))
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                get_renderable=self._panel,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start()
            self._console.show_cursor(True)  # a process that is killed could not show it again
            stack.callback(self._live.stop)
            ended = threading.Event()
            thread = threading.Thread(target=self._run, args=(ended,), name="panel", daemon=True)
            stack.callback(thread.join, 2 * PERIOD)
            stack.callback(ended.set)
            self._keyboard = Keyboard(self._terminal)
            self._resources = stack.pop_all()
        _showing = self
        thread.start()

    def stop(self, keep: bool = True) -> None:
        """Draw the last state and give the terminal back; without `keep` the panel is removed."""
        global _showing
        if self._keyboard is not None:
            self._keyboard.restore()  # first: a terminal that takes no output now must be left usable, too
        with self._drawing:
            resources, self._resources = self._resources, None
            if resources is None:
                return
            _showing = None
            with failures_logged():
                self._live.transient = not keep
                self._tick(force=True)
        resources.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Give the terminal back within the block."""
        self.stop(keep=False)
        try:
            yield
        finally:
            self.start()

    def __enter__(self) -> "Display":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, ended: threading.Event) -> None:
        """The thread. What goes wrong here is no reason to end a run."""
        while not ended.wait(PERIOD):
            with self._drawing, failures_logged():
                if self._resources is not None:
                    self._tick()

    def _tick(self, force: bool = False) -> None:
        """Take over what was posted, print its lines, and draw where something has changed."""
        if self._log is not None:
            self._log.keep_bounded()
        printed: list[Table] = []
        changed = bool(self._posted)
        while self._posted:
            printed += self._take(self._posted.popleft())
        self._printed.extend(printed)
        before, self._size = self._size, size_of(self._terminal)
        resized = self._size != before
        if self._size.columns < before.columns:
            # Many terminals have broken the panel's lines into more rows than it knows of.
            self._terminal.write(CLEAR)
            printed = list(self._printed)[-max(1, self._size.lines // 4) :]
        self._console.size = self._size
        starting = stage_now(self.view) is not None and "step" not in self.view.latest
        idle = time.monotonic() - self._drawn_at > (PERIOD / 2 if starting else IDLE)
        if printed or force or changed or resized or idle:
            with self._console:  # which writes all at once
                if printed:
                    self._console.print(Group(*printed))  # with the panel as it was below
                self._live.refresh()
            self._drawn_at = time.monotonic()

    def _take(self, posted: Event | tuple[float, str]) -> list[Table]:
        """Take over an event or a line; return the lines that are to be printed."""
        if isinstance(posted, tuple):
            return [stamped(*posted)]
        if self._starts is not None:
            self._starts.add(posted)
        shown = take(posted, self.view)
        if posted["event"] in IN_PANEL:
            return []
        if posted["event"] == "evaluation":
            shown = shown[:1]  # the panel has its sample
        return [stamped(posted["time"], line) for line in shown]

    def _panel(self) -> RenderableType:
        return panel(self.view, self._size.columns, max(1, self._size.lines - ROWS_OF_LINES))


def stamped(moment: float, markup: str) -> Table:
    """A line after its time, below which it goes on beside it."""
    found = Table.grid(padding=(0, 1))
    found.add_column(style="dim", no_wrap=True)
    found.add_column(overflow="fold")
    found.add_row(time.strftime("%H:%M:%S", time.localtime(moment)), Text.from_markup(markup, emoji=False))
    return found


def size_of(terminal: TextIO) -> os.terminal_size:
    """The terminal's columns and rows now."""
    with contextlib.suppress(OSError, ValueError):
        columns, rows = os.get_terminal_size(terminal.fileno())
        return os.terminal_size((columns or USUAL_SIZE.columns, rows or USUAL_SIZE.lines))
    return USUAL_SIZE


@contextlib.contextmanager
def failures_logged() -> Iterator[None]:
    """Log an exception instead of raising it: no picture is worth a run."""
    try:
        yield
    except Exception:
        logging.getLogger(__name__).exception("The panel could not be drawn.")
