"""The page of a real run, and of what may stand in a metrics file."""

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest

from engine import train
from engine.events import REPORT_NAME, read
from engine.screen.report import library, page_of_events
from tests.helpers.lineage import lineage
from tests.helpers.look_ahead import ON
from tests.helpers.training import TOKENS_PER_STEP

HOSTILE = "<script>alert('x')</script>\x1b[2J\" onload=\"x</script>\u2028"
ALONE = {"meta", "br"}  # tags that are not closed
NEVER_LOADED = ("src", "href", "action", "data", "srcset", "poster")


class Page(html.parser.HTMLParser):
    """The tags of a page, its text and its titles; closing tags must match."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.titles: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.text = self.policy = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.titles += [values["title"]] if "title" in values else []
        self.links += [value for name, value in attributes if name in NEVER_LOADED]
        assert not [name for name in values if name.startswith("on")]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if tag == "script":
            self.scripts.append("")
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data


def test_a_run_leaves_its_page(tiny, tmp_path: Path):
    train(tiny(auxiliary=ON), token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    page = Page((tmp_path / REPORT_NAME).read_text())
    evaluation = [event for event in read(tmp_path) if event["event"] == "evaluation"][-1]
    assert f"{evaluation['ce']:.4f}" in page.text and f"{20 * TOKENS_PER_STEP:,} tokens of this run" in page.text
    for figure in ("policy", "value", "dynamics", "span_contrastive", "latent_variance"):
        assert figure in page.text
    assert page.tags.count("svg") == page.tags.count("figure") >= 5
    place = evaluation["passage"][len(evaluation["passage"]) // 2]
    said = [title for title in page.titles if title.startswith("loss of the next 16 tokens")]
    assert len(said) == len(evaluation["passage"]) > 10
    assert f"expected {place['expected_nll']['16']:.2f}\nrealised {place['realised_nll']['16']:.2f}" in "".join(said)
    counted = evaluation["data"]["topics"]
    assert counted["tokens"] == 20 * TOKENS_PER_STEP and f"{counted['documents']:,}" in page.text


def test_it_asks_for_nothing_and_runs_its_own_scripts_alone():
    page = Page(page_of_events(lineage()))
    assert all(link.startswith("#") for link in page.links)
    data, *scripts = page.scripts
    json.loads(data)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2
    rules = dict(rule.split(" ", 1) for rule in page.policy.split("; "))
    assert rules["default-src"] == "'none'" and set(rules["script-src"].split()) == {f"'sha256-{h}'" for h in hashes}
    assert "http" not in page.policy


def test_no_text_becomes_markup():
    names = [f"{HOSTILE} one", f"{HOSTILE} two"]
    text = page_of_events(lineage(names, HOSTILE))
    page, plain = Page(text), Page(page_of_events(lineage()))
    assert page.tags == plain.tags and len(page.scripts) == len(plain.scripts)
    assert "\x1b" not in text and "alert('x')" in page.text
    assert "\u2028" not in "".join(page.scripts)


def test_the_same_events_make_the_same_page():
    assert page_of_events(lineage()) == page_of_events(lineage())


def test_without_the_library_the_curves_stand_still(monkeypatch):
    whole = page_of_events(lineage())
    monkeypatch.setattr(library, "javascript", lambda: None)
    text = page_of_events(lineage())
    page = Page(text)
    assert len(page.scripts) == 2 and page.tags.count("svg") == 10 and "stand still" in page.text
    assert len(text) < 0.1 * len(whole) and "BokehJS" not in page.text


def test_it_is_made_for_screens_of_any_size_and_for_paper():
    text = page_of_events(lineage())
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_every_link_has_its_section():
    text = page_of_events(lineage())
    page = Page(text)
    assert len(page.links) == 6
    assert all(re.search(rf'<section id="{link[1:]}">', text) for link in page.links)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [
            {"event": "step", "time": 1, "tokens": 1, "share": 0.1, "tokens_total": 1, "step": 1}
            | {"loss": None, "tokens_per_second": 1.0, "eta_seconds": 1.0}
        ],
    ],
)
def test_a_page_of_hardly_anything(events):
    assert "Events" in Page(page_of_events(events)).text


def test_without_the_core_there_is_no_passage():
    events = [event | {"passage": None} for event in lineage()]
    page = Page(page_of_events(events))
    assert "What it foresees" not in page.text and "What it writes" in page.text


def test_its_size_is_bounded_whatever_the_number_of_events():
    events = list(lineage())
    steps = [event for event in events if event["event"] == "step"]
    many = [steps[0] | {"tokens_total": number, "step": number} for number in range(20_000)]
    sizes = [len(page_of_events([events[0], *some])) for some in (many[:2_000], many)]
    assert sizes[1] < 1.2 * sizes[0] and sizes[1] < 2_500_000
