"""A program at a pseudo-terminal, as a person sees it and types."""

import os
import pty
import select
import time
from pathlib import Path

from tests.helpers.processes import Variables, start


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
