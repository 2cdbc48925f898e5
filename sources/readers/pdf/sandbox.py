"""Reads PDFs in processes of their own: a PDF is a stranger's input to large and old readers.

This is the parent's side. `Sandbox.read` sends one line of JSON to a small server process (`process.py`), started when
the first file is read; the server forks one child a file and answers with a packed `Extract`. The child holds no
secrets, has limits on memory, processor time and what it may open and write, and is killed when its time is over. A
sandbox serves any number of threads, one file at a time; one that was pickled or forked starts a server of its own; a
server ends with the process that started it.
"""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

STATUSES = ("text", "locked", "damaged", "memory", "time", "size", "foreign", "scanned")
_HEADER = struct.Struct("!BIII")


@dataclass(frozen=True)
class Limits:
    """What one file may cost. Sizes are in bytes; `memory` is what comes on top of an idle reader's."""

    memory: int = 1 << 30
    cpu_seconds: int = 120
    wall_seconds: float = 300
    file_bytes: int = 500_000_000
    characters: int = 30_000_000
    pages: int = 20_000


@dataclass(frozen=True)
class Extract:
    """What a file gave: `status` is "text", or another of STATUSES where there is none.

    Of `num_pages` pages `read_pages` were read, `lost_pages` are damaged, and the rest is beyond a limit.
    """

    status: str
    text: str = ""
    num_pages: int = 0
    read_pages: int = 0
    lost_pages: int = 0

    def pack(self) -> bytes:
        """Return the bytes that `unpack` takes."""
        counts = (min(count, 2**32 - 1) for count in (self.num_pages, self.read_pages, self.lost_pages))
        return _HEADER.pack(STATUSES.index(self.status), *counts) + self.text.encode("utf-8", "ignore")

    @classmethod
    def unpack(cls, data: bytes) -> "Extract":
        """Return what `pack` wrote; nothing in `data` is trusted, and what makes no sense is a damaged file."""
        if len(data) < _HEADER.size or data[0] >= len(STATUSES):
            return cls("damaged")
        status, *counts = _HEADER.unpack_from(data)
        return cls(STATUSES[status], data[_HEADER.size :].decode("utf-8", "replace"), *counts)


class Sandbox:
    """The parent's handle on a server process; usable by many threads, picklable, a context manager."""

    def __init__(self, limits: Limits | None = None):
        self.limits = limits or Limits()
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._server: subprocess.Popen[bytes] | None = None

    def __reduce__(self) -> tuple[type["Sandbox"], tuple[Limits]]:
        return Sandbox, (self.limits,)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: Path) -> Extract:
        """Extract a PDF's text with pypdfium2, and with pypdf where that fails. Raises OSError for a file not there."""
        if path.stat().st_size > self.limits.file_bytes:
            return Extract("size")
        if self._owner != os.getpid():  # forked: server and lock belong to another process
            self.__init__(self.limits)
        with self._lock:
            extract = self._ask(path, "pdfium")
            return self._ask(path, "pypdf") if extract.status == "damaged" else extract

    def close(self) -> None:
        """End the server; the next file starts another."""
        if self._server is not None:
            self._end_server()
            self._server = None

    def _ask(self, path: Path, reader: str) -> Extract:
        request = {"path": os.path.abspath(path), "reader": reader, "limits": asdict(self.limits)}
        for _ in range(2):  # a server may have died since the last file
            with contextlib.suppress(EOFError, BrokenPipeError):
                return self._exchange(json.dumps(request).encode() + b"\n")
        return Extract("memory")  # only want of memory ends a server that merely forks

    def _exchange(self, request: bytes) -> Extract:
        if self._server is None:
            self._server = _start_server()
            self._end_server = weakref.finalize(self, _end, self._server, self._owner)
        requests, answers = _pipes(self._server)
        deadline = time.monotonic() + self.limits.wall_seconds
        timer = threading.Timer(self.limits.wall_seconds, _kill, (self._server,))
        timer.start()
        try:
            requests.write(request)
            requests.flush()
            size = int.from_bytes(_exactly(answers, 8))
            return Extract.unpack(_exactly(answers, size))
        except BaseException:  # even an interrupt: the next file must not get this file's answer
            self.close()
            if time.monotonic() >= deadline:
                return Extract("time")
            raise
        finally:
            timer.cancel()


def _start_server() -> "subprocess.Popen[bytes]":
    """Start `process.py` in a session of its own, with nothing of this process but where its modules are."""
    paths = [str(Path(__file__).parents[3]), *(os.path.abspath(path) for path in sys.path)]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}
    if "LD_LIBRARY_PATH" in os.environ:  # without it an interpreter may not even start
        variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return subprocess.Popen(
        # no bytecode written, no folder searched but `paths`, no start-up code of installed packages
        [sys.executable, "-B", "-P", "-S", "-m", "sources.readers.pdf.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=variables,
        start_new_session=True,
    )


def _pipes(server: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    assert server.stdin is not None and server.stdout is not None
    return server.stdin, server.stdout


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _kill(server: "subprocess.Popen[bytes]") -> None:
    """Kill a server and its child. Its number is not another process's: nobody but `_end` takes note of its death."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)


def _end(server: "subprocess.Popen[bytes]", owner: int) -> None:
    if os.getpid() == owner:
        _kill(server)
        server.wait()
    for stream in _pipes(server):
        with contextlib.suppress(BrokenPipeError):
            stream.close()
