"""engine/screen/machines.py: what is remembered of this machine, and what is told apart from it."""

from pathlib import Path

import pytest

from engine.screen import machines
from engine.screen.machines import MOST_STARTS, Machine
from tests.helpers.machines import MACHINE, remembering


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name, value in remembering(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return MACHINE


def test_what_runs_reach_is_kept(machine: Machine):
    reached = machines.with_reached(machine, {"bf16": 7.0})
    assert machines.remembered() == reached and reached.reached == {"bf16": 7.0}
    assert machines.with_reached(reached, {"bf16": 7.0}) is reached


def test_other_threads_and_devices_are_another_machine(machine: Machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert machines.remembered() is None
    machines.remember(machine)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machines.remembered() == machine


def test_a_cache_that_is_damaged_or_cannot_be_written_is_left_alone(machine: Machine, tmp_path: Path, monkeypatch):
    machines.cache_file().write_text("{}")
    assert machines.remembered() is None
    machines.remember(machine)
    assert machines.remembered() == machine
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    machines.remember(machine)
    machines.remember_start("tiny", {"model": 1.0})
    assert machines.remembered() is None and machines.start_seconds("tiny") == {}


def test_starts_are_remembered_beside_the_speed(machine: Machine):
    assert machines.start_seconds("tiny") == {}
    machines.remember_start("tiny", {"model": 1.0, "compile": 60.0})
    assert machines.start_seconds("tiny") == {"model": 1.0, "compile": 60.0} and machines.start_seconds("other") == {}
    machines.remember(machine)
    assert machines.start_seconds("tiny") == {"model": 1.0, "compile": 60.0}, "measured once more"
    for number in range(MOST_STARTS):
        machines.remember_start(f"{number}", {"model": 1.0})
    assert machines.start_seconds("tiny") == {} and machines.start_seconds("0") == {"model": 1.0}


def test_a_start_that_took_about_as_long_writes_nothing():
    machines.remember_start("tiny", {"model": 1.0, "compile": 60.0})
    before = machines.cache_file().stat().st_mtime_ns
    machines.remember_start("tiny", {"model": 1.2, "compile": 70.0})
    assert machines.cache_file().stat().st_mtime_ns == before
    machines.remember_start("tiny", {"model": 1.2, "compile": 20.0})
    assert machines.start_seconds("tiny")["compile"] == 20.0


def test_a_machine_that_was_not_measured_may_have_starts(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    machines.remember_start("tiny", {"model": 1.0})
    assert machines.remembered() is None and machines.start_seconds("tiny") == {"model": 1.0}
