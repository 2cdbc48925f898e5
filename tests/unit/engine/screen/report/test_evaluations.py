"""Samples over time and the passage, as text with the losses that were expected and came."""

import html
import re

from engine.screen.report.evaluations import OPEN, passage, samples
from engine.screen.report.history import History
from tests.helpers.lineage import lineage


def history(**options) -> History:
    made = History()
    for event in lineage(**options):
        made.add(event)
    return made


def test_samples_come_newest_first_and_the_older_ones_are_folded():
    page = samples(history())
    written = [int(number) for number in re.findall(r"upon a time at (\d+)", page)]
    assert len(written) == 10 and written == sorted(written, reverse=True)
    open_ones = page.partition("<details>")[0]
    assert open_ones.count('class="sample"') == OPEN and f"{10 - OPEN} earlier samples" in page
    assert "<b>Once words</b> upon a time" in page and "validation loss" in page


def test_the_passage_has_expected_and_realised_difficulty():
    page = passage(history())
    spans = re.findall(r'<span style="--expected: ([\d.]+); --realised: ([\d.]+)" title="([^"]*)"', page)
    assert len(spans) == 20
    expected, realised, _ = zip(*spans, strict=True)
    assert list(map(float, expected)) == sorted(map(float, expected)) and expected[0] != expected[-1]
    assert list(map(float, realised[:15])) == sorted(map(float, realised[:15]), reverse=True)
    assert realised[15:] == ("0",) * 5  # beyond the text's end
    first = html.unescape(spans[0][2]).splitlines()
    assert first[:2] == ["loss of the next 16 tokens: expected 2.00", "realised 3.00"]
    assert first[2] == "+1: ' words' 50%, ' other' 25%; the text has ' words1'"


def test_without_evaluations_there_is_neither():
    assert samples(History()) == passage(History()) == ""
    made = History()
    made.add({"event": "evaluation", "step": 1, "sample": None, "passage": None})
    assert samples(made) == passage(made) == ""
