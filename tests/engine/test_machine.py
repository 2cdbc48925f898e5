"""What is asked of this machine: that freed memory stays with the process."""

import subprocess
import sys

import pytest

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
