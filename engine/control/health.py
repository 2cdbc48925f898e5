"""Signs of life between ranks, beside the process group: who is still there, and whether all must end at once.

A thread of each rank counts up a number in the process group's store, over a connection of its own, and looks at those
of the others: rank 0 at all, the others at rank 0. So a rank whose main thread waits in a collective, which could take
an hour, hears within a second that a signal came elsewhere, and within LOST_SECONDS that a rank is lost.
"""

import json
import os
import secrets
import threading
import time
from dataclasses import asdict, dataclass

import torch.distributed as dist

from engine.device.ranks import Ranks
from engine.errors import RankLost

POLL_SECONDS = 0.5
LOST_SECONDS = 60.0  # without a sign of life
HURRY_SECONDS = 3.0  # the same, once a connection is known to be broken
TELL_SECONDS = 2.0  # the longest that anybody waits for the store
CLOSED = "its connection closed"
LEFT = 1 << 40  # added to the count of a rank that leaves in order


@dataclass(frozen=True)
class Ending:
    """Why all ranks end at once: the beginning of a sentence, the exit status, and the rank that is lost, if one is."""

    cause: str
    status: int
    lost: int | None = None


SOMEBODY_LOST = Ending(f"Another rank was lost ({CLOSED})", RankLost.status)


class Peers:
    """The other ranks. All ranks must make one together; `ending` is set once any rank knows of one."""

    def __init__(self, ranks: Ranks):
        token = ranks.broadcast_json(secrets.token_hex(8))  # what an earlier run in these processes said is over
        self._store = dist.PrefixStore(token, dist.distributed_c10d._get_default_store().clone())
        self._rank = ranks.rank
        self._others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        self._watched = self._others if ranks.is_main else [0]
        self._patience, self._hurried = LOST_SECONDS, False
        self._host = None if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0  # the rank with the store
        self._seen: dict[int | None, tuple[int, float]] = {}  # a count, and the seconds for which it stood still
        self._rounds = 0
        self.ending: Ending | None = None
        self._telling: Ending | None = None
        self._told = threading.Event()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        self._thread.start()

    def tell(self, ending: Ending) -> None:
        """Lets the others know; returns when they can, or when the store does not answer."""
        self._telling = ending
        self._told.wait(TELL_SECONDS)

    def find_lost(self) -> Ending:
        """Which rank broke a connection; takes a few seconds. Called by the main thread."""
        self._watched, self._patience, self._hurried = self._others, HURRY_SECONDS, True
        deadline = time.monotonic() + 2 * HURRY_SECONDS
        while self.ending is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)
        return self.ending or SOMEBODY_LOST

    def leave(self) -> None:
        """This rank leaves in order: the others must not take it for lost."""
        self._leaving.set()
        self._thread.join(TELL_SECONDS)

    def check_host(self, seconds: float) -> None:
        """Called every `seconds` by another thread: this one hangs with a rank that has the store and hangs."""
        if self._host in self._others and self.ending is None and self._thread.is_alive():
            silent = self._stood_still(None, self._rounds, seconds)
            if silent >= self._patience:
                self.ending = _lost(self._host, f"no sign for {silent:.0f} s")

    def _run(self) -> None:
        try:
            while not self._leaving.wait(POLL_SECONDS):
                self._round()
            self._store.add(f"signs/{self._rank}", LEFT)
        except RuntimeError:  # the end of a launcher that has the store is noticed by itself (signals.py)
            if self._host is not None and self.ending is None:
                self.ending = _lost(self._host, CLOSED)

    def _round(self) -> None:
        self._store.add(f"signs/{self._rank}", 1)
        if self._telling and not self._told.is_set():
            if not self._store.check(["ending"]):
                self._store.set("ending", json.dumps(asdict(self._telling)))
            self._told.set()
        if self._store.check(["ending"]):
            self.ending = Ending(**json.loads(self._store.get("ending")))
        for rank in self._watched:
            count = self._store.add(f"signs/{rank}", 0)
            silent = self._stood_still(rank, count, POLL_SECONDS)
            if silent >= self._patience and count < LEFT and self._telling is None:
                self._telling = _lost(rank, CLOSED if self._hurried else f"no sign for {silent:.0f} s")
        self._rounds += 1

    def _stood_still(self, key: int | None, count: int, seconds: float) -> float:
        """For how long a count has not changed. The sum of this process's own rounds, not a clock: a job that was
        stopped as a whole and goes on has lost nobody."""
        before, silent = self._seen.get(key, (count, 0.0))
        silent = silent + seconds if count == before else 0.0
        self._seen[key] = count, silent
        return silent


def _lost(rank: int, why: str) -> Ending:
    return Ending(f"Rank {rank} was lost ({why})", RankLost.status, rank)
