"""The keyboard while the panel is shown: what is typed is not echoed into it, and is dropped when the panel ends.

Ctrl-C and the other keys that make signals go on to make them. A guard turns the echo on again where this process is
killed: a shell does that itself for a program that it started, but not for one that a launcher started.
"""

import contextlib
import os
import subprocess
import sys
import termios
from typing import Any, TextIO

LOCAL = 3  # the index of the local modes in what termios returns
GUARD_SECONDS = 2.0  # for the guard to end
GUARD = f"""
import contextlib, signal, sys, termios
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
sys.stdin.buffer.read()  # ends with the process that has the other end
with contextlib.suppress(termios.error):
    terminal = int(sys.argv[1])
    modes = termios.tcgetattr(terminal)
    if modes[{LOCAL}] & termios.ICANON and not modes[{LOCAL}] & termios.ECHO:  # nobody has set others meanwhile
        modes[{LOCAL}] |= termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, modes)
"""


class Keyboard:
    """Turns the echo of `terminal` off until `restore`.

    Leaves alone what is no terminal, and one that belongs to another job of its shell.
    """

    def __init__(self, terminal: TextIO):
        self._descriptor = terminal.fileno()
        self._before: list[Any] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(termios.error, OSError):
            before = termios.tcgetattr(self._descriptor)
            if not before[LOCAL] & termios.ECHO or not _is_ours(self._descriptor):
                return
            self._guard = _start_guard(self._descriptor)
            silent = [*before]
            silent[LOCAL] &= ~termios.ECHO
            termios.tcsetattr(self._descriptor, termios.TCSANOW, silent)
            self._before = before

    def restore(self) -> None:
        """Echo keys again, and drop what was typed: it was not meant for the shell. May be called by any thread, and
        more than once."""
        before, self._before = self._before, None
        with contextlib.suppress(termios.error, OSError):
            if before is not None and _is_ours(self._descriptor):
                termios.tcsetattr(self._descriptor, termios.TCSANOW, before)  # waits for no output
                termios.tcflush(self._descriptor, termios.TCIFLUSH)
        guard, self._guard = self._guard, None
        if guard is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                guard.communicate(timeout=GUARD_SECONDS)  # closes its input


def _is_ours(descriptor: int) -> bool:
    """Whether the terminal is this process's now, and not that of a shell which has it in the background."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # that of another session, as under torchrun
        return os.isatty(descriptor)


def _start_guard(descriptor: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", GUARD, str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,  # the terminal's signals are not for it, nor does it stop there in the background
    )
