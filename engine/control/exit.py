"""How the process ends."""

import os
import sys
import threading
from typing import NoReturn

from sources.loading.prefetch import READER


def end(status: int) -> NoReturn:
    """End the process without waiting for a thread that reads from a network: it may be deep inside a library that does
    not survive the interpreter's own shutdown, and everything that matters is written by now."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk or a closed pipe: the interpreter would try again, and exit with its own status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if any(thread.daemon and thread.is_alive() and thread.name == READER for thread in threading.enumerate()):
        os._exit(status)
    raise SystemExit(status)
