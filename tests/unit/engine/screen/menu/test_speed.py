"""engine/screen/menu/speed.py: this machine is measured once, in a process of its own, and remembered."""

import threading
from pathlib import Path

from engine.screen.menu import speed
from engine.screen.menu.speed import Machine, Measurement


def test_a_machine_is_measured_and_remembered(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("RANK", "0")  # which the process must not take for its own
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert speed.remembered() is None
    found: list[Machine] = []
    said = threading.Event()
    measurement = Measurement(lambda machine: (found.append(machine), said.set()))
    measurement.wait()
    assert said.is_set() and speed.remembered() == found[0]
    assert found[0].flops["fp32"] > 1e6 and found[0].memory > 2**20
    assert ("bf16" in found[0].flops) == found[0].bf16


def test_what_runs_reach_is_kept(machine: Machine):
    reached = speed.with_reached(machine, {"bf16": 7.0})
    assert speed.remembered() == reached and reached.reached == {"bf16": 7.0}
    assert speed.with_reached(reached, {"bf16": 7.0}) is reached


def test_other_threads_and_devices_are_another_machine(machine: Machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert speed.remembered() is None
    speed.remember(machine)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert speed.remembered() == machine


def test_a_cache_that_is_damaged_or_cannot_be_written_is_left_alone(machine: Machine, tmp_path: Path, monkeypatch):
    speed.cache_file().write_text("{}")
    assert speed.remembered() is None
    speed.remember(machine)
    assert speed.remembered() == machine
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    speed.remember(machine)
    assert speed.remembered() is None


def test_a_measurement_ends_when_it_is_stopped(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measurement = Measurement(lambda machine: None)
    measurement.stop()
    measurement.wait()
    assert speed.remembered() is None
