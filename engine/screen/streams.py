"""Standard streams that a run can rely on: open, without secrets, and with no failure that ends a run."""

import contextlib
import io
import os
import sys
from typing import Any, TextIO, cast

from sources.redact import redact_process


def prepare_streams() -> None:
    """Opens standard streams that are closed, as a daemon's are, and keeps secrets out of logs, warnings, tracebacks.

    A file that took the number of a closed stream would get what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdin, sys.stdout = sys.stdin or os.fdopen(0), sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    if isinstance(sys.stdin, io.TextIOWrapper):  # a key outside the terminal's encoding is only a wrong answer
        sys.stdin.reconfigure(errors="replace")
    redact_process()


class _Output:
    """Standard output, as it is at each call, without its failures: a full disk or a closed pipe ends no run."""

    def write(self, text: str) -> int:
        encoding = sys.stdout.encoding or "utf-8"  # which may lack some characters, as ascii does
        with contextlib.suppress(OSError):
            sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


OUTPUT = cast(TextIO, _Output())
