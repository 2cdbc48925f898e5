"""A program at a pseudo-terminal, as a person sees it and types."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte

from tests.helpers.processes import Variables, environment, start


class Terminal:
    """A script, or a program given as text, with a terminal of its own as its standard streams."""

    def __init__(self, script: Path | str, *arguments: str, cwd: Path, variables: Variables):
        self._descriptor, inner = pty.openpty()
        self.process = start(script, *arguments, cwd=cwd, variables=variables, stdin=inner, stdout=inner)
        os.close(inner)

    def read(self, until: str, seconds: float = 90) -> str:
        """What is shown up to a text that must come."""
        seen, deadline = "", time.monotonic() + seconds
        readable = select.poll()  # select takes no descriptor above 1023
        readable.register(self._descriptor, select.POLLIN)
        while until not in seen and time.monotonic() < deadline:
            if readable.poll(500):
                try:
                    seen += os.read(self._descriptor, 65536).decode(errors="replace")
                except OSError:  # the program has ended
                    break
        assert until in seen, seen[-3000:]
        return seen

    def type(self, keys: str, until: str) -> str:
        """What is shown after these keys, up to a text that must come."""
        os.write(self._descriptor, keys.encode())
        return self.read(until)

    def end(self, seconds: float = 60) -> int:
        """The exit status of a program that ends by itself."""
        status = self.process.wait(seconds)
        os.close(self._descriptor)
        return status

    def kill(self) -> None:
        self.process.kill()
        self.end()


QUIET_SECONDS = 0.1  # without output: a screen is drawn to its end
DIM = re.compile(rb"(\x1b\[)((?:1;)?)2((?:;[\d;]*)?m)")  # pyte knows no dim text, so that it blinks


class Screen:
    """A program at a pseudo-terminal of some size, and what that terminal shows of it: pyte interprets its output."""

    def __init__(
        self,
        script: Path | str,
        *arguments: str,
        cwd: Path,
        size: tuple[int, int] = (80, 24),
        variables: Variables | None = None,
        launcher: Sequence[str] = (),
    ):
        """`size` is columns and rows. With a `launcher`, the words of a command, the script is started by it, and the
        terminal is its own: keys such as Ctrl-C make signals there."""
        self._descriptor, inner = pty.openpty()
        self._screen = pyte.HistoryScreen(*size, history=2000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.resize(*size)
        # pyte knows nothing of CI, and COLUMNS would stand above the terminal's own size.
        wanted = {"TERM": "xterm-256color", "CI": "", "COLUMNS": "", "LINES": "", **(variables or {})}
        if launcher:
            self.process = subprocess.Popen(
                [*launcher, str(script), *arguments],
                cwd=cwd,
                env=environment(**wanted),
                stdin=inner,
                stdout=inner,
                stderr=inner,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        else:
            self.process = start(script, *arguments, cwd=cwd, variables=wanted, stdin=inner, stdout=inner)
        os.close(inner)

    def until(self, text: str | Callable[[str], object], seconds: float = 90, moving: bool = False) -> str:
        """What the screen shows once it shows a text, or what a function is true of, and is drawn to its end; where
        something is `moving` it has none."""
        deadline = time.monotonic() + seconds
        while True:
            if text in self.shown() if isinstance(text, str) else text(self.shown()):
                before = len(self.raw)
                self._feed(time.monotonic() + QUIET_SECONDS)
                if moving or len(self.raw) == before:
                    return self.shown()
            elif not self._feed(deadline):
                raise AssertionError(f"{text!r} never came:\n{self.everything()}")

    def rest(self, seconds: float = 60) -> int:
        """The exit status, once the program has ended and all that it wrote is on the screen."""
        deadline = time.monotonic() + seconds
        while self._feed(deadline):
            pass
        status = self.process.wait(seconds)
        os.close(self._descriptor)
        return status

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the terminal's size; the kernel tells the program's group by SIGWINCH."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._descriptor)[3] & termios.ECHO)

    def read_keys_singly(self) -> None:
        """Change the terminal's modes, as a program does that reads key by key."""
        modes = termios.tcgetattr(self._descriptor)
        modes[3] &= ~termios.ICANON
        termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)

    def shown(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    def cells(self) -> list[list[pyte.screens.Char]]:
        """The characters with their colours, row by row; what is dim blinks."""
        return [
            [self._screen.buffer[row][column] for column in range(self._screen.columns)]
            for row in range(self._screen.lines)
        ]

    def everything(self) -> str:
        """What has scrolled away, and the screen below it."""
        above = ("".join(row[column].data for column in sorted(row)).rstrip() for row in self._screen.history.top)
        return "\n".join([*above, self.shown()])

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.rest()

    def _feed(self, deadline: float) -> bool:
        """Take over some output; False at the deadline and once the program has closed the terminal."""
        readable = select.poll()
        readable.register(self._descriptor, select.POLLIN)
        if not readable.poll(max(0.0, min(0.5, deadline - time.monotonic())) * 1000):
            return time.monotonic() < deadline
        try:
            received = os.read(self._descriptor, 65536)
        except OSError:
            return False
        self.raw += received
        self._stream.feed(DIM.sub(rb"\1\g<2>5\3", received))
        return bool(received)
