"""Heartbeats between ranks, beside the process group: which ranks are alive, and whether all must end at once.

A thread of each rank increments a counter in the process group's store, over a connection of its own, and reads the
others': rank 0 those of all, the others that of rank 0. So a rank whose main thread waits in a collective, which could
take an hour, learns within a second that another rank received a signal, and within LOST_SECONDS that a rank is lost.
"""

import itertools
import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from engine.device.ranks import Ranks
from engine.errors import RankLost

POLL_SECONDS = 0.5
LOST_SECONDS = 60.0  # without a heartbeat
BROKEN_SECONDS = 3.0  # the same, once a connection is known to be broken
STORE_SECONDS = 2.0  # the longest wait for the store
CLOSED, SILENT = "its connection closed", "no heartbeat for {:.0f} s"
LEFT = 1 << 40  # added to the counter of a rank that leaves regularly

_RUNS = itertools.count()  # of this process, as of every rank: keeps a run's counters apart from an earlier one's


@dataclass(frozen=True)
class Termination:
    """Why all ranks end at once: the start of a sentence, the exit status, and the lost rank, if there is one."""

    cause: str
    status: int
    lost: int | None = None


class HealthMonitor:
    """The other ranks. All ranks must create one together; `termination` is set once any rank announces one."""

    def __init__(self, ranks: Ranks):
        store: Any = dist.distributed_c10d._get_default_store()  # its stub lacks `clone`
        self._store = dist.PrefixStore(f"health-{next(_RUNS)}", store.clone())
        self._ranks, self._rank = ranks, ranks.rank
        self._others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        self._watched = self._others if ranks.is_main else [0]
        self._timeout, self._why_lost = LOST_SECONDS, SILENT
        # The rank that hosts the store, or on whose machine torchrun's agent does; None where that is this process's
        # own agent, whose end is detected in signals.py.
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._host = None if agent and os.environ.get("GROUP_RANK", "0") == "0" else 0
        self._counters: dict[int | None, tuple[int, float]] = {}  # counter, and the seconds for which it stood still
        self._polls = 0
        self.termination: Termination | None = None
        self._announcement: Termination | None = None
        self._announced = threading.Event()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def announce(self, termination: Termination) -> None:
        """Let the other ranks know; returns when they can, or when the store does not answer."""
        self._announcement = termination
        self._announced.wait(STORE_SECONDS)

    def find_lost(self) -> Termination:
        """Return which rank broke a connection; takes a few seconds. Called by the main thread."""
        self._watched, self._timeout, self._why_lost = self._others, BROKEN_SECONDS, CLOSED
        deadline = time.monotonic() + 2 * BROKEN_SECONDS
        while self.termination is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)
        return self.termination or Termination(f"Another rank was lost ({CLOSED})", RankLost.status)

    def leave(self) -> None:
        """Leave regularly: the other ranks must not report this one as lost."""
        self._leaving.set()
        self._thread.join(STORE_SECONDS)

    def check_host(self) -> None:
        """Called every POLL_SECONDS by another thread: this monitor's own hangs where the store's host hangs."""
        if self._host in self._others and self.termination is None and self._thread.is_alive():
            silent = self._seconds_still(None, self._polls)
            if silent >= self._timeout:
                self.termination = self._lost(self._host, SILENT.format(silent))

    def _run(self) -> None:
        try:
            while not self._leaving.wait(POLL_SECONDS):
                self._poll()
            self._store.add(f"heartbeats/{self._rank}", LEFT)
        except RuntimeError:
            if self._host is not None and self.termination is None:
                self.termination = self._lost(self._host, CLOSED)

    def _poll(self) -> None:
        self._store.add(f"heartbeats/{self._rank}", 1)
        if self._announcement and not self._announced.is_set():
            if not self._store.check(["termination"]):
                self._store.set("termination", json.dumps(asdict(self._announcement)))
            self._announced.set()
        if self._store.check(["termination"]):
            self.termination = Termination(**json.loads(self._store.get("termination")))
        for rank in self._watched:
            counter = self._store.add(f"heartbeats/{rank}", 0)
            silent = self._seconds_still(rank, counter)
            if silent >= self._timeout and counter < LEFT and self._announcement is None:
                self._announcement = self._lost(rank, self._why_lost.format(silent))
        self._polls += 1

    def _seconds_still(self, key: int | None, counter: int) -> float:
        """Return for how long a counter has not changed: the sum of this process's own polls, not a clock, so that a
        job that is stopped as a whole and continued has lost no rank."""
        before, silent = self._counters.get(key, (counter, 0.0))
        silent = silent + POLL_SECONDS if counter == before else 0.0
        self._counters[key] = counter, silent
        return silent

    def _lost(self, rank: int, why: str) -> Termination:
        return Termination(f"Rank {self._ranks.place(rank)} was lost ({why})", RankLost.status, rank)
