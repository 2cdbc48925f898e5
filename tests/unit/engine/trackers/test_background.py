"""Trackers that fail, hang and are slow, beside a run that does not wait for them."""

import threading
import time
from pathlib import Path

import pytest

from engine.errors import PresetError
from engine.trackers import background
from engine.trackers.background import Trackers, require_packages
from engine.trackers.records import Record
from engine.trackers.tracker import TrackedRun
from tests.helpers.tracked import run_event, step_event


class Recorder:
    """A tracker that remembers, and does before each record what the test wants."""

    def __init__(self, run: TrackedRun):
        self.run = run
        runs.append(self)
        self.records: list[Record] = []
        self.closed = False

    def log(self, record: Record) -> None:
        before(record)
        self.records.append(record)

    def close(self) -> None:
        self.closed = True


runs: list[Recorder] = []


def before(record: Record) -> None:
    """What the tests replace."""


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    runs.clear()
    monkeypatch.setitem(background.TRACKERS, "tensorboard", Recorder)


def show(steps: int, folder: Path) -> tuple[list[str], float]:
    """What is said of a run of so many steps, and the seconds that it waits until it closes."""
    said: list[str] = []
    trackers = Trackers(["tensorboard"], lambda: folder, said.append, said.append)
    begin = time.monotonic()
    for event in (run_event(), *map(step_event, range(steps))):
        trackers.take(event)
    taken = time.monotonic() - begin
    trackers.close()
    return said, taken


def test_a_tracker_gets_the_preset_and_all_steps(tmp_path: Path):
    assert show(100, tmp_path)[0] == []
    (only,) = runs
    assert only.run.preset["name"] == "tiny" and only.run.resumed_at is None and only.closed
    assert [record.step for record in only.records] == list(range(100))


def test_a_tracker_that_fails_is_left_out_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(record: Record) -> None:
        raise ConnectionError("no route to https://name:password@host\nat all")

    monkeypatch.setattr(f"{__name__}.before", fail)
    said, _ = show(100, tmp_path)
    sentence = "train.log_to: tensorboard failed (no route to https://***@host at all). Training goes on without it."
    assert said == [sentence]


def test_a_tracker_that_hangs_neither_holds_up_nor_keeps_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for_ever = threading.Event()
    monkeypatch.setattr(f"{__name__}.before", lambda record: for_ever.wait())
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.3)
    begin = time.monotonic()
    said, taken = show(2000, tmp_path)
    assert taken < 1 and time.monotonic() - begin < 3
    for_ever.set()
    assert said == [
        "train.log_to: tensorboard does not keep up, so it misses a part of this run.",
        "train.log_to: tensorboard has not taken all events in time; the rest of them is left out.",
    ]


def test_secrets_are_taken_out_before_a_tracker_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-token")
    said: list[str] = []
    trackers = Trackers(["tensorboard"], lambda: tmp_path, said.append, said.append)
    event = run_event()
    event["preset"]["description"] = "with a-very-secret-token in it"
    trackers.take(event)
    trackers.close()
    assert runs[0].run.preset["description"] == "with hf_*** in it"


def test_without_trackers_there_is_no_thread(tmp_path: Path):
    trackers = Trackers([], lambda: tmp_path, print, print)
    before_it = threading.active_count()
    trackers.take(run_event())
    trackers.close()
    assert threading.active_count() == before_it


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch):
    require_packages(["tensorboard"])
    monkeypatch.setattr(background, "is_installed", lambda name: False)
    with pytest.raises(PresetError, match=r'"wandb" needs the package wandb, .* python -m pip install wandb, or take'):
        require_packages(["wandb"])
