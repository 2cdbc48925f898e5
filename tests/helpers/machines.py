"""A machine whose speed is known, so that a menu need not measure it."""

import os
from pathlib import Path
from unittest import mock

from engine.screen import machines
from engine.screen.machines import Machine

MACHINE = Machine("cpu", "CPU, 2 threads, 24 GiB", 24 * 2**30, True, {"bf16": 4e11, "fp32": 1e11})


def remembering(cache: Path) -> dict[str, str]:
    """Variables of a process that finds MACHINE in `cache` as its own."""
    variables = {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, variables):
        machines.remember(MACHINE)
    return variables
