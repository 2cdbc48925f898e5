"""A worker process: answers the training process's requests for blocks until the connection ends (see prefetch.py)."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

from sources.loading.prefetch import WorkerError
from sources.redact import redact_process
from sources.rows.pipeline import PipelineCallbacks
from sources.rows.producer import LocalProducer
from sources.source import SourceError


def serve(connection: Connection) -> None:
    """Read the setup, then answer requests until the other side closes."""
    # An event is a tuple. No request comes before an answer: what can be read meanwhile is the end.
    callbacks = PipelineCallbacks(lambda *event: connection.send(event), connection.poll)
    producer = LocalProducer(connection.recv(), callbacks)
    while True:
        request, *arguments = connection.recv()
        try:
            answer = producer.produce(*arguments) if request == "produce" else producer.flush()
        except SourceError as error:
            answer = error
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            answer = WorkerError(f"A data worker failed: {traceback.format_exc()}")
        connection.send(answer)


def _end_with_parent(parent: int) -> None:
    """Leave nothing behind when the training process is killed during a long read."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # cannot be imported here: of no use, and 180 MB
    redact_process()  # its standard error is the training process's
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the training process saves first, and ends this one after
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(Connection(int(sys.argv[1])))
