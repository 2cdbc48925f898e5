"""The figures beside the chart."""

import pytest

from engine.screen.live.figures import auxiliary, flowing, short_names, sources, table, training, validation
from engine.screen.live.view import RunView
from tests.helpers.run_view import NOW, evaluation_event, step_event, view_of


def plain(lines: list) -> list[str]:
    return [line.plain for line in lines]


def test_what_the_steps_and_the_last_evaluation_say():
    view = view_of(50)
    figures = dict(training(view))
    assert figures["tokens/s"] == "10.0k" and figures["MFU"] == "31.2%" and figures["data stall"] == "0.3%"
    assert figures["memory"] == "3.0 of 8 GiB" and figures["learning rate"] == "3.00e-04"
    assert figures["incidents"] == "" and figures["loss"].startswith("3.57")
    figures = dict(validation(view, NOW + 50 * 10 + 200))
    assert figures["perplexity"] and figures["bits per byte"] and figures["evaluated"] == "at 5.00M tokens"
    assert "(-0.3" in figures["loss"] and figures["checkpoint"] == "3 min ago, at 5.00M"


def test_what_is_not_known_is_left_out():
    assert training(RunView()) == validation(RunView(), NOW) == auxiliary(RunView()) == []
    view = view_of(1, mfu=None, grad_norm=None)
    del view.latest["step"]["memory_bytes"]
    lines = plain(table("training", training(view), 40, 20))
    assert lines[0].startswith("training ──") and not any("MFU" in line or "memory" in line for line in lines)


def test_incidents_are_counted():
    view = view_of(2)
    for kind in ("spike", "spike", "skip"):
        view.add({"event": kind})
    assert dict(training(view))["incidents"] == "2 spikes, 1 skipped step"


def test_sources_are_listed_by_share():
    view = RunView()
    losses = {f"source {number}": 3.0 + number for number in range(5)}
    shares = {name: 0.1 * (1 + number) for number, name in enumerate(losses)}
    view.add(step_event(1, sources=losses, source_shares=shares))
    lines = plain(sources(view, 60, 10))
    assert len(lines) == 6 and lines[0].split()[:3] == ["sources", "loss", "share"]
    assert lines[1].split()[:4] == ["source", "4", "7.000", "50.0%"] and lines[1].endswith("▪" * 6)
    lines = plain(sources(view, 60, 4))
    assert len(lines) == 4 and lines[-1] == "and 3 more"
    assert sources(view, 60, 1) == [] and sources(view_of(1, sources={"one": 3.0}), 60, 9) == []


def test_sources_of_an_older_version_have_no_shares():
    view = view_of(1)
    del view.latest["step"]["source_shares"]
    lines = plain(sources(view, 60, 9))[1:]
    assert {line.split()[0]: len(line.split()) for line in lines} == {"wikipedia": 2, "papers": 2}


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["wikipedia", "c4"], ["wikipedia", "c4"]),
        (["/data/texts/first", "/data/texts/second"], ["…ts/first", "…s/second"]),
        (["a long name of a source", "b"], ["a long n…", "b"]),
    ],
)
def test_long_names_stay_different(names: list[str], short: list[str]):
    assert short_names(names, 9) == short


def test_figures_flow_over_as_few_lines_as_fit():
    figures = [("one", "1"), ("unknown", ""), ("two", "2"), ("three", "3")]
    assert plain(flowing(figures, 80)) == ["one 1   two 2   three 3"]
    assert plain(flowing(figures, 16)) == ["one 1   two 2", "three 3"]
    assert flowing([("unknown", "")], 80) == []


def test_auxiliary_losses_have_words():
    view = view_of(1, auxiliary={"span_contrastive": 1.23456})
    view.add(evaluation_event(1))
    assert auxiliary(view) == [("span contrastive", "1.235")]
