"""engine/screen/live/starts.py: the stages of a start become what the next one of its kind is expected to take."""

from pathlib import Path

import pytest

from engine.checkpoint.names import CURRENT
from engine.screen.live.starts import FIRST_STEPS, StartTimes
from tests.helpers.machines import remembering
from tests.helpers.run_view import step_event

BEGIN = 1000.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in remembering(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)


def stages(starts: StartTimes, **seconds: float) -> None:
    now = BEGIN
    for name, took in seconds.items():
        starts.add({"event": "stage", "time": now, "name": name, "seconds": None})
        now += took
        starts.add({"event": "stage", "time": now, "name": name, "seconds": took})


def test_the_next_start_of_this_kind_knows(tmp_path: Path):
    first = StartTimes("tiny", tmp_path)
    assert first.expected == {}
    stages(first, checkpoint=0.1, tokenizer=20.0)
    assert StartTimes("tiny", tmp_path).expected == {}, "there is no step yet"
    first.add(step_event(1) | {"time": BEGIN + 25.1})
    expected = {"checkpoint": 0.1, "tokenizer": 20.0, FIRST_STEPS: pytest.approx(5.0)}
    assert StartTimes("tiny", tmp_path).expected == expected
    stages(first, evaluation=9.0)  # after the start
    first.add(step_event(2))
    assert StartTimes("tiny", tmp_path).expected == expected
    assert StartTimes("other", tmp_path).expected == {}
    (tmp_path / CURRENT).touch()
    assert StartTimes("tiny", tmp_path).expected == {}, "one that resumes has other stages"


def test_a_rollback_is_no_start(tmp_path: Path):
    starts = StartTimes("tiny", tmp_path)
    stages(starts, checkpoint=0.1, tokenizer=20.0)
    starts.add(step_event(1))
    stages(starts, checkpoint=7.0)
    starts.add(step_event(2))
    assert StartTimes("tiny", tmp_path).expected["checkpoint"] == 0.1
