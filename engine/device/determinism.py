"""What makes a run repeatable to the bit: deterministic kernels, and random numbers that belong to a batch.

Both are off unless a preset asks for them: deterministic kernels are slower, and without dropout a step has no
randomness.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Only kernels that give the same bits every time, in the whole process; afterwards everything is as before.

    An operation that has no such kernel raises. cuBLAS reads its setting when it is first used, so this comes first.
    """
    if not enabled:
        yield
        return
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(CUBLAS_WORKSPACE)
    fills = memory.fill_uninitialized_memory
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    memory.fill_uninitialized_memory = False  # DeepSpeed takes 200 MB anew each step and reads only what it wrote
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        cudnn.deterministic, cudnn.benchmark = switches
        memory.fill_uninitialized_memory = fills
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seeds torch for one batch: dropout then depends neither on restarts nor on which steps were skipped before, and
    differs between ranks."""
    torch.manual_seed(int(np.random.SeedSequence([seed, batch, rank]).generate_state(1, np.uint64)[0]))
