"""What is asked of this machine: that freed memory stays with the process; what a device can do at best."""

import subprocess
import sys

import pytest
import torch

from engine import machine

PROGRAM = """
import resource, torch
from engine import machine
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
    assert page_faults(keep=True) < pages / 100 < page_faults(keep=False)


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
        ("Some Future Device", (None, None)),
    ],
)
def test_the_peak_of_a_device_by_its_name(monkeypatch, name: str, peaks: tuple):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert tuple(machine.peak_flops(torch.device("cuda"), bf16) for bf16 in (True, False)) == peaks
    assert machine.peak_flops(torch.device("cpu"), True) is None
