"""Who makes the blocks: a thread of this process, or worker processes beside it.

A worker process is this interpreter run with `-m sources.loading.worker`: it imports no more than it needs (a forked
or spawned copy of a training process would bring the engine along, and its threads), and ends when its connection
does. One thread here speaks with one worker, a question at a time, so neither can block the other. A worker that dies
is started again: the questions hold all it needs.
"""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shard_cache import CachedSource
from sources.rows.blocks import BlockMaker, Made
from sources.rows.pipeline import Event, Recipe, Surroundings
from sources.source import JSON, Source, SourceError

READER = "blocks"  # the name of threads that read sources
RESTARTS = 3  # of one worker
CLOSE_SECONDS = 5.0
ROOT = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """A worker process cannot go on; the message is a sentence."""


class Workers:
    """`num_workers` processes, or with 0 one thread; lanes are dealt to them in turn. `events` fills meanwhile."""

    def __init__(self, sources: dict[str, Source], recipe: Recipe, cached: dict[str, CachedSource], num_workers: int):
        self.events: deque[Event] = deque()
        self._stop = threading.Event()
        setup = (sources, recipe, cached)
        self._makers: list[Any] = [_Process(setup, self._announce) for _ in range(num_workers)]
        if not self._makers:
            self._makers = [BlockMaker(*setup, Surroundings(self._announce, self._stop.is_set))]
        self._threads = [_Thread() for _ in self._makers]
        self._turns: dict[int, int] = {}  # lane -> its maker

    def submit(self, name: str, lane: int, before: JSON | None) -> Future[Made]:
        """Ask for the block behind the state `before`; the future raises SourceError or WorkerError."""
        # By the order of asking: the numbers of one rank's lanes are W apart, and might all be one worker's.
        turn = self._turns.setdefault(lane, len(self._turns) % len(self._makers))
        return self._threads[turn].submit(self._make, self._makers[turn], name, lane, before)

    def close(self) -> None:
        """Drop what was asked for and end; waits a few seconds for what is being made."""
        self._stop.set()
        endings = [thread.submit(maker.flush) for thread, maker in zip(self._threads, self._makers, strict=True)]
        for thread in self._threads:
            thread.end()
        wait(endings, CLOSE_SECONDS)
        for maker in self._makers:
            if isinstance(maker, _Process):
                maker.kill()

    def _make(self, maker: Any, name: str, lane: int, before: JSON | None) -> Made:
        if self._stop.is_set():
            raise SourceError("the loader is closed")
        return maker.make(name, lane, before)

    def _announce(self, name: str, what: str, message: str) -> None:
        self.events.append({"event": "source", "name": name, "what": what, "message": message})


class _Thread:
    """Runs what it is given, in order. Not an executor of the standard library: the interpreter would wait for that one
    at its end, and a hub that does not answer can hold it for half a minute."""

    def __init__(self):
        self._queue: queue.SimpleQueue[tuple[Future, Any, tuple] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=READER, daemon=True).start()

    def submit(self, work: Any, *arguments: Any) -> Future:
        future: Future = Future()
        self._queue.put((future, work, arguments))
        return future

    def end(self) -> None:
        """End when what was submitted is done."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, work, arguments = item
            try:
                future.set_result(work(*arguments))
            except BaseException as error:  # travels to whoever waits for it
                future.set_exception(error)


class _Process:
    """One worker process, started when it is first asked; only `kill` may be called by another thread."""

    def __init__(self, setup: Any, announce: Any):
        self._setup, self._announce = setup, announce
        self._connection: Connection | None = None
        self._process: subprocess.Popen | None = None
        self._failures = 0  # in a row
        self._killed = False

    def make(self, name: str, lane: int, before: JSON | None) -> Made:
        while True:
            try:
                if self._connection is None:
                    self._start()
                made = self._ask("make", name, lane, before)
                self._failures = 0
                return made
            except (EOFError, OSError):
                self._end()
                self._failures += 1
                if self._killed:
                    raise SourceError("the loader is closed") from None
                if self._failures > RESTARTS:
                    raise WorkerError(
                        f"A data worker ended {self._failures} times in a row, perhaps for want of memory; "
                        "lower data.num_workers."
                    ) from None
                self._announce(name, "notice", "a data worker ended unexpectedly; it is started again")

    def flush(self) -> None:
        """Let the process write what it holds back, and end."""
        if self._connection is not None:
            with contextlib.suppress(EOFError, OSError):
                self._ask("flush")
            self._end()

    def kill(self) -> None:
        """End the process at once, if it still runs."""
        self._killed = True
        if (process := self._process) is not None:
            process.kill()

    def _ask(self, *question: Any) -> Any:
        self._connection.send(question)
        while True:
            kind, *answer = self._connection.recv()
            if kind == "event":
                self._announce(*answer)
            elif kind == "failed":
                raise SourceError(answer[0], transient=answer[1])
            elif kind == "bug":
                raise WorkerError(f"A data worker failed: {answer[0]}")
            else:
                return answer[0]

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sources.loading.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            # One encoding thread each: the workers share the cores among themselves.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAYON_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C is for the training process, which ends this one
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._connection.send(self._setup)

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()  # the worker ends by itself when it sees that
            self._connection = None
        if self._process is not None:
            try:
                self._process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
