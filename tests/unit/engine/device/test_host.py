"""engine/device/host.py: cores and memory by affinity and container."""

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from engine.device import host, machine


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
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host.usable_cores() == cores


@pytest.mark.parametrize(
    ("variables", "processes"), [({}, 1), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"LOCAL_SIZE": "2"}, 2)]
)
def test_both_launchers_say_how_many_processes_are_here(monkeypatch, variables: dict[str, str], processes: int):
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert host.processes_here() == processes


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
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert (host.total_memory(), host.available_memory_each()) == (limit, free)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (machine.total_memory_each(torch.device("cpu")), host.available_memory_each()) == (limit / 2, free / 2)
