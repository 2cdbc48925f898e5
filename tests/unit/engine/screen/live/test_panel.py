"""The panel of any run fits into any terminal, and says first what matters most."""

import itertools
import re
import unicodedata

import pytest

from engine.screen.live import panel as module
from engine.screen.live.panel import panel
from engine.screen.live.starts import FIRST_STEPS
from engine.screen.live.view import RunView
from tests.helpers.run_view import NOW, evaluation_event, run_event, step_event, view_of

SIZES = [(1, 1), (10, 3), (40, 8), (60, 15), (80, 22), (109, 30), (110, 38), (120, 38), (200, 58), (300, 100)]
AUXILIARY = {"policy": 1.0, "value": 2.0, "span_contrastive": 3.0, "latent_variance": 0.9}


@pytest.fixture(autouse=True)
def at(monkeypatch: pytest.MonkeyPatch):
    """Sets the clock; at first to a minute after fifty steps."""
    set_to = lambda moment: monkeypatch.setattr(module.time, "time", lambda: moment)  # noqa: E731
    set_to(NOW + 560)
    return set_to


def starting() -> RunView:
    view = RunView()
    view.expected = {"tokenizer": 30.0}
    view.add({"event": "stage", "time": NOW, "name": "checkpoint", "seconds": None})
    view.add({"event": "stage", "time": NOW, "name": "checkpoint", "seconds": 1.5})
    view.add({"event": "stage", "time": NOW + 550, "name": "tokenizer", "seconds": None})
    return view


def one_loss() -> RunView:
    view = RunView()
    view.add(run_event())
    view.add(step_event(1))
    return view


VIEWS = {
    "nothing": RunView,
    "starting": starting,
    "one step": one_loss,
    "many steps": lambda: view_of(300),
    "lookahead": lambda: view_of(120, auxiliary=AUXILIARY),
    "many sources": lambda: view_of(
        60,
        sources={f"/a/long/path/to/one/of/many/folders/{number}": 4.0 for number in range(40)},
        source_shares={},
    ),
}


@pytest.mark.parametrize(("name", "size"), list(itertools.product(VIEWS, SIZES)))
def test_every_panel_fits(name: str, size: tuple[int, int]):
    columns, rows = size
    lines = panel(VIEWS[name](), columns, rows).split("\n")
    assert len(lines) <= rows and all(line.cell_len <= columns for line in lines)


def test_a_small_terminal_shows_the_essentials():
    text = panel(view_of(50), 80, 22).plain
    for essential in ("tiny", "run 3", "step 50", "5.0%", "5.00M of 100M tokens", "about 2 h 40 min left", "done at"):
        assert essential in text
    for essential in ("◆", "loss ", "perplexity", "bits per byte", "tokens/s", "MFU", "memory", "data stall"):
        assert essential in text
    assert "checkpoint     60 s ago" in text and "wikipedia" in text and "Once upon a time" in text
    text = panel(view_of(50), 40, 6).plain
    assert "5.00M of 100M tokens" in text and "tokens/s 10.0k" in text


def test_a_wide_terminal_shows_everything_beside_the_chart():
    lines = panel(view_of(120, auxiliary=AUXILIARY), 120, 38).plain.split("\n")
    (row,) = [line for line in lines if "training ──" in line]
    assert row.index("━ training loss") < row.index("training ──")
    text = "\n".join(lines)
    assert "auxiliary losses" in text and "span contrastive 3" in text and "gradient norm" in text


def test_no_time_is_told_before_it_is_known(at):
    at(NOW + 100)
    text = panel(view_of(5), 80, 22).plain
    assert "time left: known after some more steps" in text and "about" not in text.split("training")[0]


def test_before_the_first_step_it_says_what_is_done():
    text = panel(starting(), 80, 22).plain
    assert "✓ reading the checkpoint  1.5 s" in text
    assert re.search(r"\S preparing the tokenizer  10 s of about 30 s", text)


def test_between_the_last_stage_and_the_first_report_it_says_so(at):
    view = starting()
    view.add({"event": "stage", "time": NOW + 20, "name": "tokenizer", "seconds": 20.0})
    view.add(run_event())
    view.expected[FIRST_STEPS] = 12.0
    at(NOW + 24)
    assert re.search(r"\S running the first steps  4 s of about 12 s", panel(view, 80, 22).plain)
    view.add(step_event(1))
    assert "first steps" not in panel(view, 80, 22).plain
    view = starting()
    view.add({"event": "stage", "time": NOW + 20, "name": "tokenizer", "seconds": 20.0})
    view.add(run_event())
    view.add({"event": "end", "time": NOW + 21, "how": "stopped", "message": None})
    assert "first steps" not in panel(view, 80, 22).plain


def test_the_last_state_says_how_it_ended():
    for how in ("finished", "stopped", "failed"):
        view = view_of(50)
        view.add({"event": "end", "time": NOW + 520, "how": how, "message": None})
        text = panel(view, 80, 22).plain
        assert f"step 50 · {how} ──" in text and "left" not in text


def test_hostile_text_is_shown_as_text():
    name = "\x1b]0;title\x07evil \u202ename\nsecond [red]line[/]"
    view = view_of(20, sources={name: 3.0, "b": 4.0}, source_shares={name: 0.5, "b": 0.5})
    view.run["preset"]["name"] = name
    view.add(evaluation_event(20, sample={"prompt": "\x1b[2J\x9b", "text": "[bold]a\r\nb\u2066c"}))
    text = panel(view, 120, 38).plain
    assert "[red]line[/]" in text and "[bold]a b" in text and "evil" in text
    controls = {character for character in text if unicodedata.category(character) in ("Cc", "Cf")} - {"\n"}
    assert not controls
