"""How fast this machine is: measured once, beside the menu, by a process of its own."""

import contextlib
import glob
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from engine.screen.machines import Machine, remember

MEASURE_SECONDS = 120.0  # until a measurement is given up
ROOT = Path(__file__).resolve().parents[3]
# Variables by which the process would take itself for one of several ranks.
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def has_gpu() -> bool:
    """Whether a GPU is to be expected here; certain is only what was measured."""
    return bool(glob.glob("/dev/nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


class Measurement:
    """Measures this machine beside the menu; `done` is called, by a thread, with what was found."""

    def __init__(self, done: Callable[[Machine], None]):
        self._done = done
        variables = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.device.machine"],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the menu is not for it
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until it is done, or given up."""
        self._thread.join(MEASURE_SECONDS)

    def stop(self) -> None:
        """End it: what comes next needs the machine."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def _run(self) -> None:
        try:
            printed, _ = self._process.communicate(timeout=MEASURE_SECONDS)
            machine = Machine(**json.loads(printed.splitlines()[-1]))
        except (subprocess.TimeoutExpired, ValueError, TypeError, IndexError):
            self.stop()
            return
        remember(machine)
        self._done(machine)
