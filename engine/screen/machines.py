"""What is known of machines from one start to the next, in a file of the user's cache folder: how fast each is, and how
long the stages of its starts took.
"""

import contextlib
import glob
import os
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import storage
from engine.device import host
from storage import Damaged

CACHE = "~/.cache"  # without XDG_CACHE_HOME
FILE = Path("forethought", "machines.json")
# Variables with which the same machine trains on other devices or threads.
OF_THE_DEVICE = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
MOST_STARTS = 100  # that are kept of a machine, by what was started
CHANGED = 0.25  # by which share a time differs from the one that is kept, to be written at all

Seconds = dict[str, float]  # by stage


@dataclass(frozen=True)
class Machine:
    """What engine/device/machine.py measures, with the FLOP/s that real runs have reached by precision, and the seconds
    of each stage of the latest starts, by what was started.

    One without `flops` was not measured yet.
    """

    kind: str  # "cpu" or "cuda"
    description: str
    memory: int  # bytes
    bf16: bool  # native
    flops: dict[str, float]  # of a matrix product, by precision
    reached: dict[str, float] = field(default_factory=dict)
    starts: dict[str, Seconds] = field(default_factory=dict)


def cache_file() -> Path:
    """Where machines are remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME") or CACHE).expanduser() / FILE


def machine_key() -> str:
    """What tells this machine, and what a run here may use of it, from others."""
    gpus = " ".join(sorted(glob.glob("/dev/nvidia[0-9]*")))
    set_here = [f"{name}={os.environ[name]}" for name in OF_THE_DEVICE if name in os.environ]
    return " ".join([socket.gethostname(), f"{host.usable_cores()} cores", gpus, *set_here]).strip()


def remembered() -> Machine | None:
    """This machine as it was measured before; None where it was not."""
    machine = _read().get(machine_key())
    return machine if machine is not None and machine.flops else None


def remember(machine: Machine) -> None:
    """Keep `machine` as what this one is, with the starts that are known of it."""
    known = _read().get(machine_key())
    _write(machine if known is None else replace(machine, starts=known.starts))


def with_reached(machine: Machine, flops: dict[str, float]) -> Machine:
    """`machine` with what real runs have reached, remembered where that is new."""
    changed = {name: rate for name, rate in flops.items() if machine.reached.get(name) != rate}
    if not changed:
        return machine
    machine = replace(machine, reached={**machine.reached, **changed})
    remember(machine)
    return machine


def start_seconds(what: str) -> Seconds:
    """How long each stage of the latest start of `what` took here; empty where it was never started."""
    machine = _read().get(machine_key())
    return machine.starts.get(what, {}) if machine else {}


def remember_start(what: str, seconds: Seconds) -> None:
    """Keep how long the stages of a start of `what` took, unless that is known already, about."""
    machine = _read().get(machine_key()) or Machine("", "", 0, False, {})
    known = machine.starts.get(what, {})
    if known.keys() == seconds.keys() and all(
        abs(took - known[name]) <= CHANGED * max(1.0, known[name]) for name, took in seconds.items()
    ):
        return
    others = {name: kept for name, kept in machine.starts.items() if name != what}
    latest = dict([*others.items(), (what, seconds)][-MOST_STARTS:])
    _write(replace(machine, starts=latest))


def _read() -> dict[str, Machine]:
    try:
        return TypeAdapter(dict[str, Machine]).validate_python(storage.read_record(cache_file()) or {})
    except (Damaged, ValidationError):
        return {}


def _write(machine: Machine) -> None:
    """Write `machine` as this one; a cache folder that cannot be written is left alone."""
    path = cache_file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_record(path, {key: asdict(one) for key, one in {**_read(), machine_key(): machine}.items()})
