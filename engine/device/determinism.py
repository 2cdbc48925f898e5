"""Bit-exact repeatability: deterministic kernels, and dropout seeded per batch.

Both are off unless a preset asks for them: deterministic kernels are slower, and without dropout a step draws nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use only deterministic kernels in the whole process; restores the settings afterwards.

    An operation without such a kernel raises. cuBLAS reads its setting at its first use, so enter this before.
    """
    if not enabled:
        yield
        return
    cudnn: Any = torch.backends.cudnn  # modules whose attributes are settings, which their stubs do not say
    memory: Any = torch.utils.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(CUBLAS_WORKSPACE)
    fills = memory.fill_uninitialized_memory
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    memory.fill_uninitialized_memory = False  # DeepSpeed allocates 200 MB per step and reads only what it wrote
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        cudnn.deterministic, cudnn.benchmark = switches
        memory.fill_uninitialized_memory = fills
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seed torch for one batch: dropout depends neither on restarts nor on skipped steps, and differs between ranks."""
    torch.manual_seed(int(np.random.SeedSequence([seed, batch, rank]).generate_state(1, np.uint64)[0]))
