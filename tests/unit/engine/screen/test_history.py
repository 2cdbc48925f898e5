"""What a page keeps of any number of events, and how a long metrics.jsonl is read for it."""

import json
import tracemalloc
from pathlib import Path

import pytest

from engine.events import FILE_NAME
from engine.screen import history
from engine.screen.history import MAX_CURVES, MAX_DROPPED, MAX_POINTS, Curve, History, read_history


def step(number: int) -> dict:
    figures = {"sources": {"a": 1.0, "b": 2.0}, "auxiliary": {"policy": 3.0}}
    return {"event": "step", "step": number, "tokens_total": 100 * number, "loss": float(number % 2), **figures}


def write(folder: Path, events: list[dict]) -> None:
    with (folder / FILE_NAME).open("w") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_a_short_curve_is_as_it_is_and_a_long_one_is_averaged():
    short, long = Curve(), Curve()
    for tokens in range(MAX_POINTS):
        short.add(tokens, 0.5)
    assert short.points() == [(float(tokens), 0.5) for tokens in range(MAX_POINTS)]
    for tokens in range(4 * MAX_POINTS):
        long.add(tokens, float(tokens % 2))
    assert long.points() == [(4 * group + 1.5, 0.5) for group in range(MAX_POINTS)]


def test_a_curve_keeps_its_whole_range_whatever_its_length():
    curve = Curve()
    for tokens in range(100_001):
        curve.add(tokens, tokens)
    points = curve.points()
    assert MAX_POINTS / 2 <= len(points) <= MAX_POINTS
    assert points[0][0] < 500 and points[-1][0] > 99_500 and all(figure == tokens for tokens, figure in points)


def test_counts_the_latest_and_curves():
    seen = History()
    for event in (step(1), {"event": "save"}, {"event": "save"}, step(2), {"event": "evaluation", "ce": 1.5}):
        seen.add(event)
    assert seen.counts == {"save": 2} and seen.latest == {
        "step": step(2),
        "evaluation": {"event": "evaluation", "ce": 1.5},
    }
    assert seen.points("loss") == {"training": [(100.0, 1.0), (200.0, 0.0)], "validation": []}
    assert list(seen.points("sources")) == ["a", "b"] and seen.points("auxiliary")["policy"] == [
        (100.0, 3.0),
        (200.0, 3.0),
    ]


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf"), 10**400, [], {}])
def test_what_is_no_number_is_no_point(value):
    seen = History()
    for event in (step(1) | {"loss": value}, step(1) | {"tokens_total": value}, step(1) | {"sources": value}):
        seen.add(event)
    seen.add({"event": value if value != {} else "source", "what": value})
    assert seen.points("loss") == {"training": [(100.0, 1.0)]}


def test_names_without_end_take_no_memory_without_end():
    seen = History()
    for number in range(1000):
        seen.add({"event": "step", "tokens_total": number, "sources": {f"source {number}": 1.0}})
        seen.add({"event": "source", "what": "dropped", "name": str(number), "message": ""})
        seen.add({"event": f"kind {number}"})
    assert len(seen.curves["sources"]) == MAX_CURVES and len(seen.dropped) == MAX_DROPPED and not seen.counts


def test_of_a_long_history_all_is_counted_and_a_part_is_parsed(tmp_path: Path, monkeypatch):
    events = [{"event": "run", "preset": {}}]
    for number in range(1, 20_001):
        events.append(step(number))
        if number % 100 == 0:
            events += [{"event": "evaluation", "tokens_total": 100 * number, "ce": number}, {"event": "save"}]
    write(tmp_path, events)
    monkeypatch.setattr(history, "PARSED_BYTES", 100_000)
    parsed = []
    parse = history.events.parse
    monkeypatch.setattr(history.events, "parse", lambda line: parsed.append(line) or parse(line))
    tracemalloc.start()
    seen = read_history(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(parsed) < 2_000 and peak < 3_000_000
    assert seen.counts == {"run": 1, "save": 200}
    assert seen.latest["step"]["step"] == 20_000 and seen.latest["evaluation"]["ce"] == 20_000
    training = seen.points("loss")["training"]
    assert 200 <= len(training) <= MAX_POINTS and training[0][0] < 20_000 and training[-1][0] > 1_980_000


def test_a_short_history_is_read_in_full(tmp_path: Path):
    events = [step(number) for number in range(1, 51)]
    write(tmp_path, events)
    seen, whole = read_history(tmp_path), History()
    for event in events:
        whole.add(event)
    assert seen.points("loss") == whole.points("loss") and seen.latest == whole.latest


def test_without_a_file_there_is_nothing(tmp_path: Path):
    assert not read_history(tmp_path).latest
