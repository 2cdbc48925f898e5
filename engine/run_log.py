"""run.log beside the snapshots: what libraries log, warn of and print during a run.

Text gets there without secrets, like metrics.jsonl. At MAX_BYTES the file becomes run.log.1 and a new one is begun.
"""

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import storage
from sources.redact import redact

FILE_NAME = "run.log"
MAX_BYTES = 2**22  # of the file, and of the one before it
# Of these the handlers that write to a standard stream are replaced: a run's own messages are all that a person needs.
LIBRARIES = {"DeepSpeed", "transformers", "datasets", "huggingface_hub", "torch", "py", "fsspec", "webdataset"}
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RunLog:
    """An append-only file that never fails: what cannot be written is dropped. `folder` is where it is at each moment.

    Only with `create` is the file made; else it must be there, as for the ranks beside rank 0.
    """

    def __init__(self, folder: Callable[[], Path], create: bool):
        self._folder, self._create = folder, create
        self._lock = threading.RLock()
        self._descriptor = -1
        self._follower_descriptors: set[int] = set()
        with contextlib.suppress(OSError):
            self._descriptor = self._open()

    def write(self, text: str) -> None:
        """Append whole lines of text."""
        with self._lock, contextlib.suppress(OSError):
            self.keep_bounded()
            if self._descriptor >= 0:
                os.write(self._descriptor, (redact(text).rstrip("\n") + "\n").encode(errors="replace"))

    def keep_bounded(self) -> None:
        """Begin a new file where this one is too large, or is no longer the one that has the name."""
        with self._lock, contextlib.suppress(OSError):
            if self._descriptor < 0:
                return
            own, path = os.fstat(self._descriptor), self._folder() / FILE_NAME
            in_place = os.path.lexists(path) and os.path.samestat(own, os.lstat(path))
            if in_place and own.st_size < MAX_BYTES:
                return
            if in_place:
                os.replace(path, path.with_name(f"{FILE_NAME}.1"))
            fresh = self._open()
            for descriptor in (self._descriptor, *self._follower_descriptors):
                os.dup2(fresh, descriptor, inheritable=descriptor in self._follower_descriptors)
            os.close(fresh)

    @contextlib.contextmanager
    def instead_of(self, *descriptors: int) -> Iterator[None]:
        """Let what is written to these descriptors, by whatever code, go to the file within the block."""
        if self._descriptor < 0:
            yield
            return
        kept = {descriptor: os.dup(descriptor) for descriptor in descriptors}
        _flush()
        with self._lock:
            for descriptor in descriptors:
                os.dup2(self._descriptor, descriptor)
            self._follower_descriptors |= kept.keys()
        try:
            yield
        finally:
            _flush()
            with self._lock:
                self._follower_descriptors -= kept.keys()
                for descriptor, before in kept.items():
                    os.dup2(before, descriptor)
                    os.close(before)

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if self._create else 0)
        with storage.open_regular(self._folder() / FILE_NAME, flags, follow=False) as file:
            return os.dup(file.fileno())


class _Handler(logging.Handler):
    """Writes records to a log, with the rank where it is not 0."""

    def __init__(self, log: RunLog, rank: int):
        super().__init__()
        self._log = log
        self.setFormatter(logging.Formatter(f"rank {rank}: {FORMAT}" if rank else FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            self._log.write(self.format(record))


@contextlib.contextmanager
def library_log(folder: Callable[[], Path], rank: int, made: Callable[[], object]) -> Iterator[RunLog]:
    """Write what libraries log and warn of to run.log in the folder that rank 0 holds.

    Rank 0 makes the file; `made`, which all ranks call, returns once it has.
    """
    log = RunLog(folder, create=True) if rank == 0 else None
    made()
    log = log or RunLog(folder, create=False)
    handler, root, moved = _Handler(log, rank), logging.getLogger(), []
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in LIBRARIES]
    for logger in map(logging.getLogger, names):
        for one in [one for one in logger.handlers if _is_of_a_stream(one)]:
            logger.removeHandler(one)
            moved.append((logger, one))
        if not logger.propagate:
            logger.addHandler(handler)
            moved.append((logger, None))
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield log
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        for logger, one in moved:
            if one is None:
                logger.removeHandler(handler)
            else:
                logger.addHandler(one)
        log.close()


def _is_of_a_stream(handler: logging.Handler) -> bool:
    """Whether a handler writes to standard output or standard error."""
    stream = getattr(handler, "stream", None)
    if stream is None or not isinstance(handler, logging.StreamHandler) or isinstance(handler, logging.FileHandler):
        return False
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        return stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) or stream.fileno() in (1, 2)
    return False


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
