"""How fast this machine is: measured once by a process of its own, and kept in a file of the user's cache folder."""

import contextlib
import glob
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import storage
from engine.device import host
from storage import Damaged

CACHE = "~/.cache"  # without XDG_CACHE_HOME
FILE = Path("forethought", "machines.json")
MEASURE_SECONDS = 120.0  # until a measurement is given up
ROOT = Path(__file__).resolve().parents[3]
# Variables with which the same machine trains on other devices or threads, or shares them with other ranks.
OF_THE_DEVICE = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Machine:
    """What engine/device/machine.py measures, with the FLOP/s that real runs have reached by precision."""

    kind: str  # "cpu" or "cuda"
    description: str
    memory: int  # bytes
    bf16: bool  # native
    flops: dict[str, float]  # of a matrix product, by precision
    reached: dict[str, float] = field(default_factory=dict)


def cache_file() -> Path:
    """Where machines are remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME") or CACHE).expanduser() / FILE


def machine_key() -> str:
    """What tells this machine, and what a run here may use of it, from others."""
    gpus = " ".join(sorted(glob.glob("/dev/nvidia[0-9]*")))
    set_here = [f"{name}={os.environ[name]}" for name in OF_THE_DEVICE if name in os.environ]
    return " ".join([socket.gethostname(), f"{host.usable_cores()} cores", gpus, *set_here]).strip()


def has_gpu() -> bool:
    """Whether a GPU is to be expected here; certain is only what was measured."""
    return bool(glob.glob("/dev/nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def remembered() -> Machine | None:
    """This machine as it was measured before; None where it was not."""
    return _read().get(machine_key())


def remember(machine: Machine) -> None:
    """Keep `machine` as what this one is; a cache folder that cannot be written is left alone."""
    path = cache_file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_record(path, {key: asdict(one) for key, one in {**_read(), machine_key(): machine}.items()})


def with_reached(machine: Machine, flops: dict[str, float]) -> Machine:
    """`machine` with what real runs have reached, remembered where that is new."""
    changed = {name: rate for name, rate in flops.items() if machine.reached.get(name) != rate}
    if not changed:
        return machine
    machine = replace(machine, reached={**machine.reached, **changed})
    remember(machine)
    return machine


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


def _read() -> dict[str, Machine]:
    try:
        return TypeAdapter(dict[str, Machine]).validate_python(storage.read_record(cache_file()) or {})
    except (Damaged, ValidationError):
        return {}
