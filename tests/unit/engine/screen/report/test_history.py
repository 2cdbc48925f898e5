"""What a page keeps of any number of events, and how a long metrics.jsonl is read for it."""

import itertools
import json
import tracemalloc
from pathlib import Path

import pytest

from engine.events import FILE_NAME
from engine.screen.report import history
from engine.screen.report.history import MAX_CURVES, MAX_MOMENTS, MAX_POINTS, Curve, History, Thinned, read_history
from tests.helpers.lineage import STEPS, TOKENS, lineage


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
        "save": {"event": "save"},
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
        seen.add({"event": "source", "what": f"what {number}", "name": "", "message": ""})
        reading = {f"source {number}": {"documents": 1, "filtered": {f"reason {number}": 1}}}
        seen.add({"event": "evaluation", "sample": {"prompt": "", "text": ""}, "data": reading})
        seen.add({"event": "run", "derived": {"run": number}})
    assert len(seen.curves["sources"]) == MAX_CURVES and set(seen.counts) == {"source", "run"}
    assert list(seen.moments) == ["dropped"] and len(seen.moments["dropped"]) == MAX_MOMENTS
    assert len(list(seen.samples)) <= history.MAX_SAMPLES and len(seen.runs) == history.MAX_RUNS
    assert len(seen.documents()) <= MAX_CURVES


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


def test_what_a_loaded_checkpoint_takes_back_is_taken_from_the_curve():
    curve = Curve()
    for tokens, figure in ((1, 5.0), (2, 4.0), (3, 3.0), (4, 99.0), (3, 2.9), (4, 2.8)):
        curve.add(tokens, figure)
    assert curve.points() == [(1, 5.0), (2, 4.0), (3.0, 2.95), (4, 2.8)] or curve.points()[-1] == (4, 2.8)
    assert all(figure < 99 for _, figure in curve.points())
    tokens = [x for x, _ in curve.points()]
    assert tokens == sorted(tokens)


def test_few_of_many_values_are_kept_evenly():
    for total in range(1, 300):
        kept: Thinned[int] = Thinned(12)
        for value in range(total):
            kept.add(value)
        values = list(kept)
        assert values[0] == 0 and values[-1] == total - 1 and len(values) <= 12
        gaps = {after - before for before, after in itertools.pairwise(values[:-1])}
        assert len(gaps) <= 1 and values == sorted(set(values))


def test_a_lineage_has_its_runs_moments_and_documents():
    seen = History()
    for event in lineage():
        seen.add(event)
    assert list(seen.runs) == [(1, 0), (2, STEPS * TOKENS)]
    assert {kind: len(found) for kind, found in seen.moments.items()} == {
        **{"spike": 2, "skip": 2, "notice": 2, "resume": 1, "dropped": 1, "rollback": 1},
    }
    first = seen.documents()[next(iter(seen.documents()))]
    assert first == {"documents": 2 * 10 * STEPS, "too short": 2 * STEPS, "repeated words": 2}
    assert [points[-1][1] for points in seen.points("shares").values()] == [0.75, 0.25]
    assert [points[-1][1] for points in seen.points("weights").values()] == [0.75, 0.25]


def test_the_end_of_a_start_is_read_however_many_lines_are_skipped(tmp_path: Path, monkeypatch):
    """Where a run began is known from the last step before it, and its documents from its last evaluation."""
    write(tmp_path, list(lineage()))
    whole = read_history(tmp_path)
    monkeypatch.setattr(history, "PARSED_BYTES", 10_000)
    part = read_history(tmp_path)
    assert part.runs == whole.runs and part.documents() == whole.documents()


def test_long_texts_take_no_room():
    seen = History()
    long = "x" * 500_000
    seen.add({"event": "source", "what": "retry", "name": long, "message": long, "more": [long]})
    seen.add({"event": "evaluation", "ce": 1.0, "sample": {"prompt": long, "text": long}, "passage": [long]})
    kept = [seen.moments["retry"][0].event, next(iter(seen.samples))]
    assert all(len(json.dumps(event)) < 5_000 for event in kept)
