"""The page of a real run, and of what may stand in a metrics file."""

import html.parser
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from engine import train
from engine.events import read
from engine.screen import report
from engine.screen.report import COLOURS, HEIGHT, MARGIN, WIDTH
from engine.screen.report import _chart as chart
from tests.helpers.look_ahead import ON
from tests.helpers.run_event import RUN
from tests.helpers.training import TOKENS_PER_STEP


class Page(html.parser.HTMLParser):
    """The tags of a page and its text; closing tags must match."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.titles: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.titles += [value for name, value in attributes if name == "title"]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_run_leaves_its_page(tiny, tmp_path: Path):
    train(tiny(auxiliary=ON), token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    page = Page((tmp_path / report.FILE_NAME).read_text())
    evaluation = [event for event in read(tmp_path) if event["event"] == "evaluation"][-1]
    assert f"{evaluation['ce']:.4f}" in page.text and f"{20 * TOKENS_PER_STEP:,} of this run (100.0%)" in page.text
    for figure in ("policy", "value", "dynamics", "span_contrastive", "latent_variance"):
        assert figure in page.text
    assert page.tags.count("svg") == 3 and page.tags.count("polyline") >= 8  # loss; six figures, five a drawing
    passage = evaluation["passage"]
    assert page.tags.count("span") == len(passage) > 10
    assert "".join(ahead["token"] for ahead in passage).split()[0] in page.text
    number = len(passage) // 2
    middle, ahead = page.titles[number], passage[number]
    expected, realised = ahead["expected_nll"]["16"], ahead["realised_nll"]["16"]
    assert f"next 16 tokens: predicted {expected:.2f}\nactual {realised:.2f}" in middle
    for distance, place in enumerate(ahead["guesses"], 1):
        guess, came = place[0][0], passage[number + distance]["token"]
        line = next(line for line in middle.splitlines() if line.startswith(f"+{distance}: "))
        assert repr(guess) in line and repr(came) in line


def test_a_journal_that_has_lost_a_bit_ends_no_run(tiny, tmp_path: Path, capsys):
    train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    journal = tmp_path / "metrics.jsonl"
    lost = '{"event": "source", "time": 0, "what": "dropped", "namd": "topics", "message": "gone"}\n'
    journal.write_text(journal.read_text() + lost)
    with pytest.raises(KeyError):
        report.page(read(tmp_path))
    assert train(tiny(), token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path).tokens == 8 * TOKENS_PER_STEP
    assert "Training goes on without it" in " ".join(capsys.readouterr().out.split())


def test_a_run_adds_to_the_page_that_it_found(tiny, tmp_path: Path, monkeypatch):
    """The history is read once, at the first evaluation or save, and the page is that of all events."""
    train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    read_history, readings = report.read_history, []
    monkeypatch.setattr(report, "read_history", lambda folder: readings.append(folder) or read_history(folder))
    train(tiny(), token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert len(readings) == 1
    assert (tmp_path / report.FILE_NAME).read_text() == report.page(read(tmp_path))


def test_without_the_core_there_is_no_passage(tiny, tmp_path: Path):
    train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    page = Page((tmp_path / report.FILE_NAME).read_text())
    assert "Lookahead at" not in page.text and "A sample" in page.text and page.tags.count("svg") == 1


def test_no_text_becomes_markup():
    hostile = "<script>alert('x')</script>\x1b[2J\" onload=\"x"
    events = [
        {**RUN, "time": 1, "preset": {**RUN["preset"], "name": hostile}, "machine": hostile},
        {"event": "source", "what": "dropped", "name": hostile, "message": hostile},
        {"event": "evaluation", "step": 1, "tokens_total": 1, "ce": 1.0, "perplexity": 2.0, "bits_per_byte": 1.0}
        | {"sample": {"prompt": hostile, "text": hostile}}
        | {"passage": [{"token": hostile, "guesses": [[[hostile, 0.5]]], "expected_nll": {}, "realised_nll": {}}]},
    ]
    text = report.page(events)
    page = Page(text)
    assert "script" not in page.tags and "\x1b" not in text and "alert('x')" in page.text
    assert not any("onload" in tag for tag in page.tags)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [
            {"event": "step", "time": 1, "tokens": 1, "share": 0.1, "tokens_total": 1}
            | {"loss": None, "tokens_per_second": 1.0, "eta_seconds": 1.0}
        ],
    ],
)
def test_a_page_of_hardly_anything(events):
    assert "Nothing yet" in Page(report.page(events)).text


# Curves as SVG: where known points stand, and that no text or figure breaks the drawing.


def drawing(curves: dict) -> ElementTree.Element:
    return ElementTree.fromstring(chart(curves))


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split(","))) for point in element.attrib["points"].split()]


def test_points_stand_where_their_figures_are():
    svg = drawing({"loss": [(0, 3.0), (50_000, 2.0), (100_000, 1.0)]})
    (line,) = svg.findall("polyline")
    top, bottom = 24.0, HEIGHT - 24.0
    assert points(line) == [(MARGIN, top), (WIDTH / 2, (top + bottom) / 2), (WIDTH - MARGIN, bottom)]
    assert [text.text for text in svg.findall("text")] == ["3", "1", "100k tokens", "loss 1"]


def test_curves_share_their_axes_and_have_their_colours():
    svg = drawing({"a": [(0, 4.0), (10, 2.0)], "b": [], "c": [(20, 0.0)]})
    a, c = svg.findall("polyline")
    assert points(a) == [(MARGIN, 24.0), (WIDTH / 2, 100.0)] and points(c) == [(WIDTH - MARGIN, 176.0)]
    assert [line.attrib["stroke"] for line in (a, c)] == list(COLOURS[:2])


def test_one_flat_point_at_zero_is_drawn():
    (line,) = drawing({"loss": [(0, 0.0)]}).findall("polyline")
    assert points(line) == [(MARGIN, HEIGHT - 24.0)]


def test_names_are_cut_and_are_no_markup():
    svg = drawing({"<script>alert('x')</script>": [(0, 1.0)]})
    assert not svg.findall(".//script")
    assert svg.findall("text")[-1].text == "<script>alert('x') 1"


def test_nothing_is_said_in_words():
    assert chart({}) == chart({"loss": []}) == '<p class="small">Nothing yet.</p>'
