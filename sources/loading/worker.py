"""A worker process: answers the training process's requests for blocks until the connection ends (see prefetch.py)."""

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from types import ModuleType
from typing import cast

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
    if producer.cached:
        _import_without_torch("webdataset")
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


def _import_without_torch(module: str) -> None:
    """Import a module that takes torch along where it can, and needs it for nothing here: a second and 180 MB."""
    modules = cast(dict[str, ModuleType | None], sys.modules)  # None: as if it were not installed
    torch = modules.setdefault("torch", None)
    try:
        importlib.import_module(module)
    finally:
        if torch is None:
            del modules["torch"]


def _end_with_parent(parent: int) -> None:
    """Leave nothing behind when the training process is killed during a long read."""
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
