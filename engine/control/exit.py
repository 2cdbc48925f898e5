"""How the process ends."""

import os
import sys
import threading
from typing import NoReturn

from engine.trackers import THREAD as TRACKER
from sources.source import READER


def end(status: int) -> NoReturn:
    """End the process without waiting for a thread that reads from a network or talks to a tracker: it may be deep in
    a library that never returns or does not survive the interpreter's own shutdown, and everything that matters is
    written by now."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk or a closed pipe: the interpreter would try again, and exit with its own status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    left = {thread.name for thread in threading.enumerate() if thread.daemon and thread.is_alive()}
    if left & {READER, TRACKER}:
        os._exit(status)
    raise SystemExit(status)
