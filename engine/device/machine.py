"""What this machine can do: native bf16, speed, memory, cores. Detected once, and the same on every rank."""

import contextlib
import ctypes
import math
import os
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from engine.device.ranks import Ranks, processes_here
from engine.events import EventLog

CGROUP = Path("/sys/fs/cgroup")  # a container's own
QUOTAS = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")  # of cgroups 2 and 1: microseconds a period
MEMORY = (  # of cgroups 2 and 1, in bytes: the limit, what is in use, and of it the files' pages that may go
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
# Dense products with fp32 accumulation, in TFLOP/s by words of the device's name: (bf16, tf32), from the makers' data
# sheets, without sparsity. The first that is found counts.
PEAK_TFLOPS = {
    "B200": (2250, 1125),
    "H200 NVL|H100 NVL": (835, 418),
    "H100 PCIe": (756, 378),
    "GH200|H200|H100": (989, 495),
    "A100": (312, 156),
    "L40S": (362, 183),
    "L40": (181, 90),
    "L4": (121, 60),
    "A40": (150, 75),
    "A10G": (70, 35),
    "A10": (125, 62.5),
    "RTX A6000": (155, 77),
    "RTX 5090": (210, 105),
    "RTX 4090": (165, 83),
    "RTX 3090 Ti": (80, 40),
    "RTX 3090": (71, 36),
}
SLOWER = "Laptop|D|Max Q"  # in names that are otherwise those of faster devices


def choose_bf16(asked: str, ranks: Ranks, log: EventLog) -> bool:
    """Return whether to compute in bf16, the same on every rank; `asked` is train.precision."""
    if asked != "auto":
        return asked == "bf16"
    native = all(ranks.gather(native_bf16(ranks.device)))
    if not native:
        log.say("This device has no native bf16 arithmetic: training in fp32.")
    return native


def native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware. Where it is emulated, bf16 is tens of times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bf16_instructions(device) is not None


def bf16_instructions(device: torch.device) -> str | None:
    """Return this CPU's bf16 instructions as used by oneDNN, "AMX" or "AVX-512"; None without them and on a GPU."""
    if device.type != "cpu":
        return None
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else None


def use_cores(device: torch.device) -> None:
    """On a CPU, use one thread per core of this process's share.

    torch counts all cores of the machine even where a container may use only a few, and torchrun gives each of several
    processes a single thread. OMP_NUM_THREADS is respected in a run of one process.
    """
    processes = processes_here()
    if device.type == "cpu" and not (processes == 1 and "OMP_NUM_THREADS" in os.environ):
        torch.set_num_threads(max(1, usable_cores() // processes))


def usable_cores() -> int:
    """Return the physical cores that this process may use, by affinity and container quota; at least one."""
    logical, physical = os.cpu_count() or 1, psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) * physical / logical
    for files in QUOTAS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no quota
            quota, period = map(int, " ".join((CGROUP / file).read_text() for file in files).split())
            cores = min(cores, quota / period) if quota > 0 else cores
    return max(1, math.ceil(cores))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what is queued; a CPU queues nothing."""
    torch.get_device_module(device).synchronize(device)


def flops_per_second(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Return the FLOP/s of the fastest matrix product of a small model's shape, (2048, 256) x (256, 4096), within about
    `seconds`: the first ones wake threads and clocks, and other processes slow some down.

    The result is written to the same memory each time: in a young process new memory costs as much as the product.
    """
    a, b = torch.randn(2048, 256, device=device, dtype=dtype), torch.randn(256, 4096, device=device, dtype=dtype)
    product = torch.empty(2048, 4096, device=device, dtype=dtype)
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        begin = time.perf_counter()
        torch.matmul(a, b, out=product)
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return 2 * 2048 * 256 * 4096 / min(times)


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """Return the device's peak FLOP/s by PEAK_TFLOPS; None where the table lacks it, as for every CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).replace("-", " ")
    if re.search(rf"\b({SLOWER})\b", name):
        return None
    for words, (bf16_tflops, tf32_tflops) in PEAK_TFLOPS.items():
        if re.search(rf"\b({words})\b", name):
            return 1e12 * (bf16_tflops if bf16 else tf32_tflops)
    return None


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, make this process keep freed memory for the next step.

    glibc returns large blocks to the system at once, and the kernel zeroes each page again, which takes a seventh of a
    small model's step. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if device.type == "cpu" and mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX of malloc.h: no maps
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: no trimming


def total_memory(device: torch.device) -> int:
    """Return the most bytes that all processes of a run on `device` may use on this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def total_memory_each(device: torch.device) -> float:
    """Return the same for one process: a GPU belongs to one, a machine is shared."""
    total = total_memory(device)
    return total if device.type == "cuda" else total / processes_here()


def reset_peak_memory() -> None:
    """Reset what `peak_memory` reports, where the kernel allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return this process's peak resident memory in bytes."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def available_memory_each() -> float:
    """Return the bytes that are free now on this machine and in its container, per process of the run."""
    return min([psutil.virtual_memory().available, *(limit - used for limit, used in _limits())]) / processes_here()


def _limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes in use that cannot be reclaimed) of the container."""
    for limit, used, statistics, files in MEMORY:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no such file, or "max": no limit
            kept = dict(line.split() for line in (CGROUP / statistics).read_text().splitlines())
            yield int((CGROUP / limit).read_text()), int((CGROUP / used).read_text()) - int(kept[files])


def choose_num_workers(asked: int | str, device: torch.device) -> int:
    """Return the data worker processes of one rank; `asked` is data.num_workers.

    One thread prepares a thousand times what a training CPU consumes; a GPU at three million tokens/s needs four
    workers (benchmarks/LOG.md).
    """
    if asked != "auto":
        return int(asked)
    if device.type == "cpu":
        return 0
    return max(1, min(8, usable_cores() // processes_here() - 1))


def describe(device: torch.device) -> str:
    """Return the device in words, for the console and the events."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({total_memory(device) / 2**30:.0f} GiB)"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}, {total_memory(device) / 2**30:.0f} GiB"
