"""By what a tracker knows a run when a model's training continues."""

from pathlib import Path

from engine.trackers.records import Record, record_of
from engine.trackers.tracker import Identity, TrackedRun
from tests.helpers.tracked import evaluation_event, event, step_event


def tracked(folder: Path, resumed_at: tuple[int, int] | None) -> TrackedRun:
    return TrackedRun(folder, {"name": "tiny"}, resumed_at, print)


def record(one: dict) -> Record:
    found = record_of(one)
    assert found is not None
    return found


def test_a_resumed_run_is_the_same_and_takes_no_step_twice(tmp_path: Path):
    first = Identity.of(tracked(tmp_path, None), "wandb")
    assert [first.place(record(step_event(step))) for step in (1, 2, 3)] == [1, 2, 3]
    assert first.place(record(evaluation_event(3))) == 3

    second = Identity.of(tracked(tmp_path, (1, 100)), "wandb")
    assert second.id == first.id
    assert [second.place(record(step_event(step))) for step in (2, 3, 4)] == [None, None, 4]
    assert second.place(record(evaluation_event(3))) is None
    assert second.place(record(evaluation_event(4))) == 4


def test_a_note_stands_at_the_latest_step(tmp_path: Path):
    identity = Identity.of(tracked(tmp_path, None), "wandb")
    identity.place(record(step_event(4)))
    assert identity.place(record(event("advice", topic="epochs", message="Add text."))) == 4


def test_a_new_model_is_another_run(tmp_path: Path):
    first, second = (Identity.of(tracked(tmp_path, None), "wandb") for _ in range(2))
    first.place(record(step_event(1)))
    assert first.id != second.id


def test_a_damaged_file_begins_another_run(tmp_path: Path):
    identity = Identity.of(tracked(tmp_path, None), "wandb")
    identity.place(record(step_event(1)))
    identity.path.write_bytes(b"{")
    assert Identity.of(tracked(tmp_path, (1, 100)), "wandb").steps == {}
