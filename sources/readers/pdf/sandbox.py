"""Reads PDFs in processes of their own: a PDF is a stranger's input to large and old readers.

This is the parent's side. `Sandbox.read` asks a small server process (`process.py`), started when the first file is
read; the server forks one child a file and answers with a packed `Extract`. The child holds no secrets, has limits on
memory, processor time and what it may open and write, and is killed when its time is over. A sandbox serves any number
of threads, one file at a time; one that was pickled or forked starts a server of its own; a server ends with the
process that started it.
"""

import contextlib
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

STATUSES = ("text", "locked", "damaged", "memory", "time", "size", "foreign", "scanned", "illegible")
_HEADER = struct.Struct("!BIIII")


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

    Of `num_pages` pages `read_pages` were read, of which `lost_pages` are damaged and `illegible_pages` have fonts that
    give no text; the rest is beyond a limit.
    """

    status: str
    text: str = ""
    num_pages: int = 0
    read_pages: int = 0
    lost_pages: int = 0
    illegible_pages: int = 0

    def pack(self) -> bytes:
        """Return the bytes that `unpack` takes."""
        counts = (self.num_pages, self.read_pages, self.lost_pages, self.illegible_pages)
        counts = (min(count, 2**32 - 1) for count in counts)
        return _HEADER.pack(STATUSES.index(self.status), *counts) + self.text.encode("utf-8", "ignore")

    @classmethod
    def unpack(cls, data: bytes) -> "Extract":
        """Return what `pack` wrote; nothing in `data` is trusted, and what makes no sense is a damaged file."""
        if len(data) < _HEADER.size or data[0] >= len(STATUSES):
            return cls("damaged")
        status, *counts = _HEADER.unpack_from(data)
        return cls(STATUSES[status], data[_HEADER.size :].decode("utf-8", "replace"), *counts)


class Sandbox:
    """The parent's handle on a server process; usable by many threads, picklable."""

    def __init__(self, limits: Limits | None = None):
        self.limits = limits or Limits()
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._server: subprocess.Popen[bytes] | None = None

    def __reduce__(self) -> tuple[type["Sandbox"], tuple[Limits]]:
        return Sandbox, (self.limits,)

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
        for _ in range(2):  # a server may have died since the last file
            with contextlib.suppress(EOFError, ConnectionError):
                return self._exchange(os.path.abspath(path), reader)
        return Extract("memory")  # only want of memory ends a server that merely forks

    def _exchange(self, path: str, reader: str) -> Extract:
        if self._server is None:
            self._server, self._connection = _start_server()
            self._end_server = weakref.finalize(self, _end, self._server, self._connection, self._owner)
        try:
            self._connection.send((path, reader, self.limits))
            if self._connection.poll(self.limits.wall_seconds):
                return Extract.unpack(self._connection.recv_bytes())
        except BaseException:  # even an interrupt: the next file must not get this file's answer
            self.close()
            raise
        self.close()
        return Extract("time")


def _start_server() -> tuple["subprocess.Popen[bytes]", Connection]:
    """Start `process.py` in a session of its own, with nothing of this process but where its modules are."""
    paths = [str(Path(__file__).parents[3]), *(os.path.abspath(path) for path in sys.path)]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"}
    if "LD_LIBRARY_PATH" in os.environ:  # without it an interpreter may not even start
        variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        server = subprocess.Popen(
            # no bytecode written, no folder searched but `paths`, no start-up code of installed packages
            [sys.executable, "-B", "-P", "-S", "-m", "sources.readers.pdf.process"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=variables,
            start_new_session=True,
        )
    return server, ours


def _end(server: "subprocess.Popen[bytes]", connection: Connection, owner: int) -> None:
    connection.close()
    if os.getpid() == owner:
        # The server and its child. Its number is not another process's: only this function takes note of its death.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
