"""What is refused before anything is trained, and what is only said."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from engine import Preset, train
from engine.errors import PresetError, SaveError
from engine.events import read
from engine.trackers import background
from tests.helpers.text import write_topics
from tests.helpers.training import TOKENS_PER_STEP, tiny_values

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def topics(tmp_path: Path) -> Path:
    (tmp_path / "topics").mkdir()
    return write_topics(tmp_path / "topics", every=5)


def run(topics: Path, folder: Path, budget: int = 4 * TOKENS_PER_STEP, **sections) -> list[dict]:
    preset = Preset.model_validate(tiny_values(topics, **sections))
    train(preset, token_budget=budget, checkpoint_dir=folder)
    return read(folder)


def test_a_disk_without_room_for_the_checkpoints(topics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 100_000))
    with pytest.raises(SaveError) as failure:
        run(topics, tmp_path / "checkpoints")
    sentence = str(failure.value)
    assert "a run keeps 3 checkpoints of 0.5 MiB" in sentence and "the disk has 0.1 MiB left. Free 1." in sentence
    assert not list((tmp_path / "checkpoints").glob("*.pth"))


def test_a_model_that_exists_trains_on_without_room(topics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(topics, tmp_path / "checkpoints")
    usage = shutil.disk_usage(tmp_path)
    free = iter([usage._replace(free=0)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(free, usage))
    events = run(topics, tmp_path / "checkpoints")
    (advice,) = [event for event in events if event["event"] == "advice"]
    assert advice["topic"] == "disk" and "a run keeps 3 checkpoints" in advice["message"]


def test_a_tracker_that_is_not_installed(topics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(background, "is_installed", lambda name: False)
    with pytest.raises(PresetError, match="python -m pip install trackio"):
        run(topics, tmp_path / "checkpoints", train={**tiny_values(topics)["train"], "log_to": ["trackio"]})


def test_little_text_and_a_full_cache_are_advice(topics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sources.caching.shutil.disk_usage", lambda path: Usage(10**12, 0, 2 * 10**9))
    monkeypatch.setattr("sources.caching.BYTES_PER_TOKEN", 1e6)
    monkeypatch.setattr("engine.checks.epochs.MOST_EPOCHS", 0.001)
    cache = {"cache": True, "cache_dir": str(tmp_path / "cache")}
    events = run(topics, tmp_path / "checkpoints", data={**tiny_values(topics)["data"], **cache})
    epochs, disk = [event for event in events if event["event"] == "advice"]
    assert epochs["topic"] == "epochs" and epochs["message"].startswith("A run reads topics (about ")
    assert disk["topic"] == "disk" and "the disk of " in disk["message"]
    assert [event["event"] for event in events].index("run") > events.index(disk)


def test_a_run_with_enough_of_everything_says_nothing(topics: Path, tmp_path: Path):
    assert not [event for event in run(topics, tmp_path / "checkpoints") if event["event"] == "advice"]
