"""Which charts a history has, and what the script gets of them."""

import json

from engine.screen.report import charts
from engine.screen.report.charts import COLOURS, as_script_data, as_section, marks
from engine.screen.report.history import History
from tests.helpers.lineage import LONG_NAMES, STEPS, TOKENS, lineage


def history(**options) -> History:
    made = History()
    for event in lineage(**options):
        made.add(event)
    return made


def test_every_figure_has_a_chart():
    made = {chart.key: chart for chart in charts.charts(history())}
    assert list(made) == [
        *("loss", "sources", "validation", "weights", "shares", "lr", "grad-norm", "rate", "waits", "auxiliary")
    ]
    assert list(made["loss"].curves) == ["training", "validation"]
    assert list(made["sources"].curves) == LONG_NAMES and made["grad-norm"].log
    assert list(made["auxiliary"].curves) == ["policy", "value", "latent_variance"]
    assert made["loss"].curves["training"][-1][0] == 2 * STEPS * TOKENS  # all runs on one axis


def test_a_single_source_has_no_charts_of_its_own():
    made = History()
    made.add({"event": "step", "tokens_total": 1, "loss": 2.0, "sources": {"a": 2.0}})
    assert [chart.key for chart in charts.charts(made)] == ["loss"]


def test_many_curves_take_several_charts():
    made = History()
    made.add({"event": "step", "tokens_total": 1, "loss": 2.0, "sources": {f"s{i}": 1.0 for i in range(20)}})
    parts = [chart for chart in charts.charts(made) if chart.key.startswith("sources")]
    assert [len(chart.curves) for chart in parts] == [COLOURS, COLOURS, 4]
    assert [chart.key for chart in parts] == ["sources", "sources-2", "sources-3"] and "(2 of 3)" in parts[1].title


def test_runs_and_incidents_are_marked():
    found = marks(history())
    assert [(kind, words) for x, kind, words in found if x == STEPS * TOKENS] == [("run", "run 2")]
    assert [kind for _, kind, _ in found].count("spike") == 2 and found[-1][1] == "rollback"


def test_the_script_gets_all_points():
    data = json.loads(as_script_data(history()))
    loss = data["charts"][0]["curves"][0]
    assert loss["name"] == "training" and len(loss["x"]) == len(loss["y"]) == 2 * STEPS and not loss["dots"]
    assert data["charts"][0]["curves"][1]["dots"]
    assert {mark["kind"] for mark in data["marks"]} == {"run", "spike", "skip", "rollback"}


def test_names_are_told_apart_and_in_full_on_hover():
    page = as_section(history(), interactive=True)
    for name in LONG_NAMES:
        assert f'<span title="{name}">' in page
    shown = [part.split("<")[0] for part in page.split('<span title="')[1:]]
    assert len({part.partition(">")[2] for part in shown}) == 2


def test_curves_that_stand_still_say_why():
    assert "python -m pip install" in as_section(history(), interactive=False)
    assert "python -m pip install" not in as_section(history(), interactive=True)
    assert "Nothing yet" in as_section(History(), interactive=True)
