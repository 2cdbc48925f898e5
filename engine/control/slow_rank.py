"""How fast each rank computes by itself, and which one the others wait for.

Collectives make all ranks' steps equally long, so what is timed is what waits for nobody: the forward pass of a step's
first micro-batch (at ZeRO stage 3 it fetches weights, which hides most of a difference). A GPU's times are read once a
window of steps, when they have long passed.
"""

import statistics
import time
from types import TracebackType
from typing import Any

import torch

from engine.device.ranks import Ranks

SLOW = 1.5  # times the median of all ranks


class ForwardTimer:
    """`with timer:` times what runs within."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._begin: Any = None
        self._times: list[Any] = []  # seconds, or pairs of events

    def __enter__(self) -> None:
        self._begin = self._now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._times.append((self._begin, self._now()))

    def take(self) -> float | None:
        """Return the median of the seconds since the last call, all of which must have passed; None where there are
        none."""
        times, self._times = self._times, []
        if self._on_gpu:
            seconds = [begin.elapsed_time(end) / 1000 for begin, end in times]
        else:
            seconds = [end - begin for begin, end in times]
        return statistics.median(seconds) if seconds else None

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def find_slow_rank(ranks: Ranks, seconds: float | None) -> dict[str, Any] | None:
    """Return the slowest rank, its machine (None where there is one only) and how many times the median it takes, if
    that is more than SLOW; `seconds` is this rank's. All ranks must call it."""
    by_rank = ranks.gather(seconds)
    if None in by_rank:
        return None
    slowest = max(range(len(by_rank)), key=by_rank.__getitem__)
    # The lower of two middle values: of two ranks one can be slow.
    times = by_rank[slowest] / max(statistics.median_low(by_rank), 1e-9)
    if times <= SLOW:
        return None
    return {"rank": slowest, "host": ranks.hosts[slowest] if ranks.hosts else None, "times_median": times}
