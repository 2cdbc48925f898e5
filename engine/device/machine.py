"""What this machine can do: native bf16, speed, memory, cores. Detected once, and the same on every rank.

    python -m engine.device.machine    one line of JSON: kind, description, memory, bf16, flops

That is a process of its own for the first screen, which does without torch.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import time
from pathlib import Path
from typing import Any

import torch

from engine.config import TrainConfig
from engine.device import host
from engine.device.host import processes_here, usable_cores
from engine.device.ranks import Ranks, local_device
from engine.errors import PresetError
from engine.events import EventLog
from model.products import kernel, timing

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
LEAST_WIDTH = 128  # of a model whose products take longer than the calls around them
LEAST_GAIN = 1.05  # of the kernel of matrix products
MEASURE_SECONDS = 1.0  # for each precision
SLOWER = "Laptop|D|Max Q"  # in names that are otherwise those of faster devices


def choose_bf16(asked: str, ranks: Ranks, log: EventLog) -> bool:
    """Return whether to compute in bf16, the same on every rank; `asked` is train.precision."""
    if asked != "auto":
        return asked == "bf16"
    native = all(ranks.gather(native_bf16(ranks.device)))
    if not native:
        log.say("This device has no native bf16 arithmetic: training in fp32.")
    return native


def choose_products(train: TrainConfig, width: int, bf16: bool, saved: str | None, ranks: Ranks, log: EventLog) -> bool:
    """Return whether the kernel multiplies matrices (model/products/), the same on every rank.

    `saved` is what has multiplied in the lineage, which train.products "auto" keeps, so that a resumed run has the bits
    of an uninterrupted one. A new lineage's is timed, but not with train.deterministic. `width` is the model's. Raises
    PresetError where the preset asks for a kernel that cannot be had.
    """
    if train.products == "torch":
        return False
    problem = next(filter(None, ranks.gather(_kernel_problem(ranks.device, bf16))), None)
    if train.products == "kernel":
        if problem:
            raise PresetError(f'train.products is "kernel" but {problem}; set it to "auto".')
        return True
    if problem:
        if saved == "kernel":
            log.say(f"Torch multiplies matrices from here on, where a kernel did: {problem}.")
        return False
    if saved is not None:
        return saved == "kernel"
    if train.deterministic or width < LEAST_WIDTH or any(ranks.gather(native_bf16(ranks.device))):
        return False
    faster = min(ranks.gather(timing.gain(width)))
    if faster < LEAST_GAIN:
        return False
    log.say(f"A kernel multiplies matrices, {faster:.2f} times as fast as torch here.")
    return True


def _kernel_problem(device: torch.device, bf16: bool) -> str | None:
    """Why the kernel cannot multiply here, or None."""
    if device.type != "cpu":
        return "this run is not on a CPU"
    if bf16:
        return "this run computes in bf16"
    return None if kernel.library() else "there is no C compiler here"


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


def measure(seconds: float = MEASURE_SECONDS) -> dict[str, Any]:
    """Return the device's kind and description, its memory in bytes, whether it has native bf16, and the FLOP/s of a
    matrix product in each precision; in bf16 only where that is native."""
    device = local_device()
    use_cores(device)
    bf16 = native_bf16(device)
    precisions = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if bf16 else {})
    return {
        "kind": device.type,
        "description": describe(device),
        "memory": total_memory(device),
        "bf16": bf16,
        "flops": {name: flops_per_second(device, dtype, seconds) for name, dtype in precisions.items()},
    }


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
    return host.total_memory()


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


if __name__ == "__main__":
    print(json.dumps(measure()))
