"""A data worker: answers the training process's questions for blocks until the connection ends (see workers.py)."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

from sources.redact import redact_process
from sources.rows.blocks import BlockMaker
from sources.rows.pipeline import Surroundings
from sources.source import SourceError


def serve(connection: Connection) -> None:
    """Read the set-up, then answer until the other side closes."""

    def announce(name: str, what: str, message: str) -> None:
        connection.send(("event", name, what, message))

    def stopping() -> bool:
        return connection.poll()  # nothing is asked before an answer: what can be read is the end

    sources, recipe, cached = connection.recv()
    maker = BlockMaker(sources, recipe, cached, Surroundings(announce, stopping))
    while True:
        question, *arguments = connection.recv()
        try:
            answer = ("done", getattr(maker, question)(*arguments))
        except SourceError as error:
            answer = ("failed", error.reason, error.transient)
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            answer = ("bug", traceback.format_exc())
        connection.send(answer)


def _end_with_parent(parent: int) -> None:
    """A training process that is killed while a long read runs leaves nothing behind."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    redact_process()  # its standard error is the training process's
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the training process saves first, and ends this one after
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(Connection(int(sys.argv[1])))
