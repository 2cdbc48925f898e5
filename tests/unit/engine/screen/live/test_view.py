"""What the panel keeps of a run's events."""

import json
from pathlib import Path

from engine.events import FILE_NAME, FIRST_STAGE
from engine.screen.live.view import MOST_STEPS, RunView, add_line, age, read_view
from tests.helpers.run_view import BEFORE, NOW, evaluation_event, run_event, step_event, view_of


def stage(name: str, seconds: float | None) -> dict:
    return {"event": "stage", "time": NOW, "name": name, "seconds": seconds}


def test_the_latest_of_each_kind_counts():
    view = view_of(60)
    assert view.latest["step"]["step"] == 60 and view.latest["save"]["step"] == 50
    assert view.begins_at == BEFORE and len(view.marks) == 6 and len(view.curve.points()) == 60
    assert age({"time": NOW}, NOW + 5) == 5 and age({"time": NOW}, NOW - 5) == 0


def test_a_start_forgets_the_process_before_it_and_keeps_the_curve():
    view = RunView()
    for name in (FIRST_STAGE, "tokenizer"):
        view.add(stage(name, None))
        view.add(stage(name, 2.0))
    view.add(run_event())
    view.add(step_event(1))
    view.add(stage("evaluation", None))
    assert view.stage["name"] == "evaluation"
    view.add(stage("evaluation", 7.0))
    view.add({"event": "end", "time": NOW, "how": "stopped", "message": None})
    assert [one["name"] for one in view.stages] == [FIRST_STAGE, "tokenizer"]

    view.add(stage(FIRST_STAGE, None))
    assert view.expected == {FIRST_STAGE: 2.0, "tokenizer": 2.0, "evaluation": 7.0} and view.stages == []
    assert "step" not in view.latest and "end" not in view.latest and view.remaining.seconds() is None
    assert len(view.curve.points()) == 1
    view.add(run_event(run=4))
    assert not view.curve.points(), "another run"


def test_a_folder_is_read_and_a_long_history_sampled(tmp_path: Path):
    lines = [run_event(), *(step_event(step) for step in range(1, 3 * MOST_STEPS)), evaluation_event(50)]
    (tmp_path / FILE_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "step", "ti')
    view = read_view(tmp_path)
    assert view.run and len(view.marks) == 1 and view.latest["step"]["step"] > 2.9 * MOST_STEPS
    assert not read_view(tmp_path / "none").latest


def test_lines_of_another_version_are_left_out():
    view = RunView()
    for line in (b"", b"[]", b'{"event": "step"}', b'{"event": "stage", "time": 1}', b'{"event": "run", "derived": 3}'):
        assert add_line(view, line) is None
    assert not view.latest
    assert add_line(view, b'{"event": "unheard"}') == {"event": "unheard"}
    assert add_line(view, json.dumps(step_event(3)).encode())["step"] == 3


def test_incidents_are_counted():
    view = RunView()
    for kind in ("spike", "skip", "skip", "rollback"):
        view.add({"event": kind})
    assert view.counts == {"spike": 1, "skip": 2, "rollback": 1}
