import json
from pathlib import Path

import pytest

from engine.console import Console, count, duration
from engine.metrics import FILE_NAME, Metrics, read

STEP = {
    "step": 1200,
    "tokens": 1_234_567,
    "share": 0.0123,
    "loss": 4.5,
    "lr": 1e-3,
    "grad_norm": 0.5,
    "tokens_per_second": 76_000.0,
    "data_wait": 0.001,
    "eta_seconds": 3661.0,
    "sources": {"wikipedia": 4.25, "c4": 4.75},
}


def test_events_are_appended_as_lines_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        metrics = Metrics(tmp_path, Console(), enabled=True)
        metrics.write("step", **STEP)
        metrics.close()
    lines = (tmp_path / FILE_NAME).read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["event"] == "step" and json.loads(lines[0])["time"] > 1.7e9
    shown = capsys.readouterr().out.splitlines()[0]
    for figure in (
        "1,200",
        "1.23M",
        "1.2%",
        "4.5000",
        "wikipedia 4.250",
        "c4 4.750",
        "76.0k",
        "1.00e-03",
        "0.1%",
        "1:01:01",
    ):
        assert figure in shown, shown


def test_other_ranks_write_and_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metrics = Metrics(tmp_path, Console(enabled=False), enabled=False)
    metrics.write("step", **STEP)
    metrics.close()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_a_line_cut_by_a_kill_hurts_no_other(tmp_path: Path):
    (tmp_path / FILE_NAME).write_text('{"event": "step", "time": 1}\n{"event": "st')
    metrics = Metrics(tmp_path, Console(enabled=False), enabled=True)
    metrics.write("save", path="x", tokens_total=1, seconds=1.0)
    metrics.close()
    assert [event["event"] for event in read(tmp_path)] == ["step", "save"]


def test_numbers_that_json_lacks_become_null(tmp_path: Path):
    metrics = Metrics(tmp_path, Console(enabled=False), enabled=True)
    metrics.write("step", **{**STEP, "loss": float("nan"), "sources": {"a": float("inf")}})
    metrics.close()
    line = (tmp_path / FILE_NAME).read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["loss"] is None


def test_a_source_named_like_markup_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metrics = Metrics(tmp_path, Console(), enabled=True)
    metrics.write("source", name="[red]", what="notice", message="[/] closes nothing")
    metrics.close()
    assert "source [red]: [/] closes nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (12_345, "12.3k"), (4_560_000, "4.56M"), (1.2e9, "1.20G"), (1e8, "100M")],
)
def test_counts(number: float, text: str):
    assert count(number) == text


def test_durations():
    assert duration(59.6) == "0:01:00"
    assert duration(float("inf")) == "?"
