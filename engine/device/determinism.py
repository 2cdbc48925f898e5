"""Bit-exact repeatability: deterministic kernels, and dropout seeded per batch.

Both are off unless a preset asks for them: deterministic kernels are slower, and without dropout a step draws nothing.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
SETTINGS = (
    (torch.backends.cudnn, "deterministic", True),
    (torch.backends.cudnn, "benchmark", False),
    # DeepSpeed allocates 200 MB per step and reads only what it wrote.
    (torch.utils.deterministic, "fill_uninitialized_memory", False),
)


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use only deterministic kernels in the whole process; restores the settings afterwards.

    An operation without such a kernel raises. cuBLAS reads its setting at its first use, so enter this before.
    """
    if not enabled:
        yield
        return
    with ExitStack() as restoring:
        mode = torch.get_deterministic_debug_mode()  # 0: off, 1: warns, 2: raises
        restoring.callback(torch.use_deterministic_algorithms, mode > 0, warn_only=mode == 1)
        torch.use_deterministic_algorithms(True)
        for module, name, value in SETTINGS:
            restoring.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        if CUBLAS_WORKSPACE not in os.environ:
            restoring.callback(os.environ.pop, CUBLAS_WORKSPACE, None)
            os.environ[CUBLAS_WORKSPACE] = ":4096:8"
        yield


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seed torch for one batch: dropout depends neither on restarts nor on skipped steps, and differs between ranks."""
    torch.manual_seed(int(np.random.SeedSequence([seed, batch, rank]).generate_state(1, np.uint64)[0]))
