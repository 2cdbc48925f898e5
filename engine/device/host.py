"""This machine without its GPUs: the cores and the memory that its processes may use. Needs no torch."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # a container's own
QUOTAS = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")  # of cgroups 2 and 1: microseconds a period
MEMORY = (  # of cgroups 2 and 1, in bytes: the limit, what is in use, and of it the files' pages that may go
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def processes_here() -> int:
    """Return how many of the run's processes are on this machine: torchrun says it, or DeepSpeed's launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")


def processes_in_all() -> int:
    """Return how many processes the run has, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def usable_cores() -> int:
    """Return the physical cores that this process may use, by affinity and container quota; at least one."""
    logical, physical = os.cpu_count() or 1, psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) * physical / logical
    for files in QUOTAS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no quota
            quota, period = map(int, " ".join((CGROUP / file).read_text() for file in files).split())
            cores = min(cores, quota / period) if quota > 0 else cores
    return max(1, math.ceil(cores))


def total_memory() -> int:
    """Return the most bytes that all processes of a run may use on this machine."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available_memory_each() -> float:
    """Return the bytes that are free now on this machine and in its container, per process of the run."""
    return min([psutil.virtual_memory().available, *(limit - used for limit, used in _limits())]) / processes_here()


def _limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes in use that cannot be reclaimed) of the container."""
    for limit, used, statistics, files in MEMORY:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no such file, or "max": no limit
            kept = dict(line.split() for line in (CGROUP / statistics).read_text().splitlines())
            yield int((CGROUP / limit).read_text()), int((CGROUP / used).read_text()) - int(kept[files])
