"""engine/screen/menu/speed.py: this machine is measured once, in a process of its own, and remembered."""

import threading
from pathlib import Path

from engine.screen import machines
from engine.screen.machines import Machine
from engine.screen.menu.speed import Measurement


def test_a_machine_is_measured_and_remembered(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("RANK", "0")  # which the process must not take for its own
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert machines.remembered() is None
    found: list[Machine] = []
    said = threading.Event()
    measurement = Measurement(lambda machine: (found.append(machine), said.set()))
    measurement.wait()
    assert said.is_set() and machines.remembered() == found[0]
    assert found[0].flops["fp32"] > 1e6 and found[0].memory > 2**20
    assert ("bf16" in found[0].flops) == found[0].bf16


def test_a_measurement_ends_when_it_is_stopped(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measurement = Measurement(lambda machine: None)
    measurement.stop()
    measurement.wait()
    assert machines.remembered() is None
