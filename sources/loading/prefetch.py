"""Step 6 of a text's way: blocks are produced ahead, by a thread of this process or by worker processes.

Both are a `BlockProducer` with a thread of its own, which hands it one request at a time. A worker process is this
interpreter run with `-m sources.loading.worker`: it imports no more than it needs (a forked or spawned copy of a
training process would bring the engine and its threads along), and ends when its connection does. One that dies is
started again, since a request holds all it needs.
"""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from sources.rows.pipeline import BlockResult, PipelineCallbacks, PipelineState
from sources.rows.producer import LocalProducer, ProducerSetup
from sources.source import READER, SourceError
from storage import digest

RESTARTS = 3  # of a worker, for one request
CLOSE_SECONDS = 5.0
SHARED_BLOCKS = 64  # kept of a chain that all lanes share; lanes whose rows hold fewer labels are a few blocks ahead
ROOT = Path(__file__).resolve().parents[2]

SourceEvent = dict[str, Any]  # as metrics.jsonl has it: event, name, what, message


class WorkerError(RuntimeError):
    """A worker process cannot go on; the message is a sentence."""


class BlockProducer(Protocol):
    """Makes blocks of any lane, one request at a time."""

    def produce(self, name: str, lane: int, before: PipelineState | None) -> BlockResult:
        """Return the block of source `name` behind the state `before`. Raises SourceError or WorkerError."""
        ...

    def flush(self) -> None:
        """Write what is held back; no request follows."""

    def kill(self) -> None:
        """End at once what may still be running; may be called from any thread."""


class Prefetcher:
    """Deals lanes to `num_workers` worker processes, or with 0 to one thread; `events` fills meanwhile."""

    def __init__(self, setup: ProducerSetup, num_workers: int):
        self.events: deque[SourceEvent] = deque()
        self._stop = threading.Event()
        producers: list[BlockProducer] = [ProcessProducer(setup, self.announce) for _ in range(num_workers)]
        if not producers:
            producers = [LocalProducer(setup, PipelineCallbacks(self.announce, self._stop.is_set))]
        self.threads = [_ProducerThread(producer, self._stop) for producer in producers]
        self._config = setup.config
        self._by_lane: dict[int | str, _ProducerThread] = {}  # by its name, a source that all lanes share
        self._shared: dict[str, OrderedDict[str, Future[BlockResult]]] = {}  # by source and the state before

    def lanes_of_chain(self, name: str) -> int:
        """Return how many lanes take the rows of one chain of a source's blocks in turn: one, or all."""
        return self._config.num_lanes if name in self._config.shared else 1

    def submit(self, name: str, lane: int, before: PipelineState | None) -> Future[BlockResult]:
        """Ask for the block behind the state `before`; the future raises SourceError or WorkerError.

        A block that all lanes share is made once.
        """
        if self.lanes_of_chain(name) == 1:
            return self._thread(lane).submit(name, lane, before)
        blocks, key = self._shared.setdefault(name, OrderedDict()), digest(before)
        if key not in blocks:
            blocks[key] = self._thread(name).submit(name, 0, before)
        blocks.move_to_end(key)
        while len(blocks) > SHARED_BLOCKS:
            blocks.popitem(last=False)
        return blocks[key]

    def _thread(self, key: int | str) -> "_ProducerThread":
        # In the order of asking: the numbers of one rank's lanes are W apart, and might all be one worker's.
        return self._by_lane.setdefault(key, self.threads[len(self._by_lane) % len(self.threads)])

    def announce(self, name: str, what: str, message: str, **values: Any) -> None:
        """Add an event of a source; its kind is `what`."""
        self.events.append({"event": "source", "name": name, "what": what, "message": message, **values})

    def close(self) -> None:
        """Drop what was asked for and end; waits at most CLOSE_SECONDS for what is being produced."""
        self._stop.set()
        for thread in self.threads:
            thread.finish()
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            thread.producer.kill()


class _ProducerThread(threading.Thread):
    """Hands a producer its requests, in order.

    Not an executor of the standard library: the interpreter waits for those when it ends, and a hub that does not
    answer can hold one for half a minute.
    """

    def __init__(self, producer: BlockProducer, stop: threading.Event):
        super().__init__(name=READER, daemon=True)
        self.producer, self._stop_event = producer, stop
        self._requests: queue.SimpleQueue[tuple[Future[BlockResult], tuple] | None] = queue.SimpleQueue()
        self.start()

    def submit(self, *request: Any) -> Future[BlockResult]:
        future: Future[BlockResult] = Future()
        self._requests.put((future, request))
        return future

    def finish(self) -> None:
        """Flush the producer and end once the requests so far are answered."""
        self._requests.put(None)

    def run(self) -> None:
        while (item := self._requests.get()) is not None:
            future, request = item
            try:
                if self._stop_event.is_set():
                    raise SourceError("the loader is closed")
                future.set_result(self.producer.produce(*request))
            except BaseException as error:  # travels to whoever waits for the block
                future.set_exception(error)
        self.producer.flush()


class ProcessProducer:
    """One worker process, started at the first request; only `kill` may be called from another thread."""

    def __init__(self, setup: ProducerSetup, announce: Callable[[str, str, str], None]):
        self.process: subprocess.Popen | None = None
        self._setup, self._announce = setup, announce
        self._connection: Connection | None = None
        self._killed = False

    def produce(self, name: str, lane: int, before: PipelineState | None) -> BlockResult:
        for attempt in range(RESTARTS + 1):
            if attempt:
                self._announce(name, "notice", "a data worker ended unexpectedly; it is started again")
            try:
                return self._ask(self._connection or self._start(), "produce", name, lane, before)
            except (EOFError, OSError):
                self._end()
                if self._killed:
                    raise SourceError("the loader is closed") from None
        raise WorkerError(
            f"A data worker ended {RESTARTS + 1} times in a row, perhaps for want of memory; lower data.num_workers."
        )

    def flush(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(EOFError, OSError, WorkerError):
                self._ask(self._connection, "flush")
            self._end()

    def kill(self) -> None:
        self._killed = True
        if (process := self.process) is not None:
            process.kill()

    def _ask(self, connection: Connection, *request: Any) -> Any:
        """Send a request; returns the answer, or raises it. Tuples that come before the answer are events."""
        connection.send(request)
        while isinstance(answer := connection.recv(), tuple):
            self._announce(*answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sources.loading.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            # One encoding thread each: the workers share the cores among themselves.
            env={**os.environ, "PYTHONPATH": path, "RAYON_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C is for the training process, which ends this one
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._connection.send(self._setup)
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()  # the worker ends by itself when it sees that
            self._connection = None
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(CLOSE_SECONDS)
            self.process.kill()  # no effect where it has ended
            self.process.wait()
            self.process = None
