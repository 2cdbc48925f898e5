"""What is asked of this machine: freed memory that stays with the process, its cores; what a device can do at best."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import TrainConfig
from engine.device import machine
from engine.device.ranks import Ranks
from engine.errors import PresetError
from engine.events import EventLog
from engine.screen.console import Console
from model.products import kernel, timing

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


def test_what_is_measured():
    found = machine.measure(seconds=0.01)
    assert found["kind"] in ("cpu", "cuda") and found["memory"] > 2**20 and found["description"]
    assert found["flops"]["fp32"] > 1e6 and ("bf16" in found["flops"]) == found["bf16"]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch):
    """Chooses what multiplies, on a CPU without bf16 whose kernel is 1.5 times as fast; keywords change that."""
    monkeypatch.setattr(machine, "native_bf16", lambda device: False)
    monkeypatch.setattr(kernel, "library", lambda: object())
    monkeypatch.setattr(timing, "gain", lambda width: 1.5)

    def make(asked: str = "auto", saved: str | None = None, **others: Any) -> bool:
        train = TrainConfig(products=asked, deterministic=others.get("deterministic", False))
        ranks = Ranks(0, 1, torch.device(others.get("device", "cpu")), None)
        log = EventLog(Path(), Console())
        return machine.choose_products(train, others.get("width", 256), others.get("bf16", False), saved, ranks, log)

    return make


def test_the_faster_one_multiplies_in_a_new_lineage(choose, monkeypatch, capsys):
    assert choose() and "1.50 times as fast as torch" in capsys.readouterr().out
    assert not choose("torch") and not choose(width=64) and not choose(deterministic=True) and not choose(bf16=True)
    assert not choose(device="meta")
    monkeypatch.setattr(timing, "gain", lambda width: 1.0)
    assert not choose() and choose("kernel")
    monkeypatch.setattr(timing, "gain", lambda width: 1.5)
    monkeypatch.setattr(machine, "native_bf16", lambda device: True)
    assert not choose() and choose("kernel")


def test_a_lineage_keeps_what_multiplies(choose, monkeypatch, capsys):
    monkeypatch.setattr(timing, "gain", lambda width: 1 / 0)
    assert choose(saved="kernel") and not choose(saved="torch")
    assert choose("kernel", saved="torch") and not choose("torch", saved="kernel")
    monkeypatch.setattr(kernel, "library", lambda: None)
    assert not choose(saved="kernel")
    assert (
        "Torch multiplies matrices from here on, where a kernel did: there is no C compiler" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("others", "reason"),
    [({"bf16": True}, "this run computes in bf16"), ({"device": "meta"}, "this run is not on a CPU")],
)
def test_a_kernel_that_cannot_be_had_is_refused(choose, monkeypatch, others: dict, reason: str):
    with pytest.raises(PresetError, match=f'train.products is "kernel" but {reason}; set it to "auto"'):
        choose("kernel", **others)
    monkeypatch.setattr(kernel, "library", lambda: None)
    with pytest.raises(PresetError, match="there is no C compiler here"):
        choose("kernel")
