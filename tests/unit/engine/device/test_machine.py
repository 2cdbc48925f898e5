"""What is asked of this machine: freed memory that stays with the process, its cores; what a device can do at best."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from engine.device import machine

PROGRAM = """
import resource, torch
from engine.device import machine
if {keep}:
    machine.keep_freed_memory(torch.device("cpu"))
for number in range(12):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_was_freed_is_used_again():
    def page_faults(keep: bool) -> int:
        program = PROGRAM.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)

    pages = 10 * 64 * 2**20 // 4096  # in ten tensors of 64 MiB
    assert page_faults(keep=True) <= pages / 5 < page_faults(keep=False)  # now and then a tensor lies elsewhere


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("NVIDIA H200", (989e12, 495e12)),
        ("NVIDIA H100 80GB HBM3", (989e12, 495e12)),
        ("NVIDIA H100 PCIe", (756e12, 378e12)),
        ("NVIDIA GeForce RTX 3090", (71e12, 36e12)),
        ("NVIDIA A100-SXM4-40GB", (312e12, 156e12)),
        ("NVIDIA A40", (150e12, 75e12)),
        ("NVIDIA L4", (121e12, 60e12)),
        ("NVIDIA L40S", (362e12, 183e12)),
        ("NVIDIA H200 NVL", (835e12, 418e12)),
        ("NVIDIA GH200 480GB", (989e12, 495e12)),
        ("NVIDIA RTX A1000", (None, None)),
        ("NVIDIA RTX A4000", (None, None)),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", (None, None)),
        ("Some Future Device", (None, None)),
    ],
)
def test_the_peak_of_a_device_by_its_name(monkeypatch, name: str, peaks: tuple):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert tuple(machine.peak_flops(torch.device("cuda"), bf16) for bf16 in (True, False)) == peaks
    assert machine.peak_flops(torch.device("cpu"), True) is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_cores_are_physical_and_within_the_quota(monkeypatch, tmp_path: Path, files: dict[str, str], cores: int):
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.usable_cores() == cores


@pytest.mark.parametrize(
    ("files", "limit", "free"),
    [
        ({}, 64, 40),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 1"}, 64, 40),
        ({"memory.max": "16", "memory.current": "9", "memory.stat": "anon 2\ninactive_file 3"}, 16, 10),
        (
            {
                "memory/memory.limit_in_bytes": "32",
                "memory/memory.usage_in_bytes": "8",
                "memory/memory.stat": "total_inactive_file 2",
            },
            32,
            26,
        ),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 64, 40),
    ],
)
def test_memory_is_a_containers_and_shared_by_its_processes(monkeypatch, tmp_path: Path, files, limit, free):
    memory = SimpleNamespace(total=64, available=40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    cpu = torch.device("cpu")
    assert (machine.total_memory(cpu), machine.available_memory_each()) == (limit, free)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (machine.total_memory_each(cpu), machine.available_memory_each()) == (limit / 2, free / 2)


@pytest.mark.parametrize(
    ("processes", "asked", "threads"), [("1", None, 6), ("2", "1", 3), ("8", "1", 1), ("1", "2", None)]
)
def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch, processes: str, asked: str | None, threads):
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(machine, "usable_cores", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.delenv("OMP_NUM_THREADS") if asked is None else monkeypatch.setenv("OMP_NUM_THREADS", asked)
    machine.use_cores(torch.device("cpu"))
    machine.use_cores(torch.device("cuda"))
    assert used == ([] if threads is None else [threads])


@pytest.mark.parametrize(("cores", "processes", "workers"), [(16, "1", 8), (16, "4", 3), (1, "1", 1)])
def test_a_gpu_has_workers_by_the_cores_that_are_its_share(monkeypatch, cores: int, processes: str, workers: int):
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert machine.choose_num_workers("auto", torch.device("cuda")) == workers
    assert machine.choose_num_workers("auto", torch.device("cpu")) == 0
    assert machine.choose_num_workers(2, torch.device("cuda")) == 2


def test_the_rate_is_that_of_the_fastest_product(monkeypatch):
    """Neither waking threads nor another process's turn makes a machine slow."""
    pauses = iter([0.2, 0.001, 0.1, *[0.005] * 1000])
    monkeypatch.setattr(torch, "matmul", lambda a, b, out: time.sleep(next(pauses)))
    rate = machine.flops_per_second(torch.device("cpu"), torch.float32, seconds=0.4)
    assert rate > 2 * 2048 * 256 * 4096 / 0.005
