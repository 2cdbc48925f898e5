"""The table of sources."""

import re

from engine.screen.report.history import History
from engine.screen.report.sources import COLUMNS, as_section
from tests.helpers.lineage import LONG_NAMES, STEPS, lineage


def rows(page: str) -> list[list[str]]:
    """The cells of each row, without tags."""
    found = [re.findall(r"<td[^>]*><div>(.*?)</div></td>", row) for row in page.split("<tr>")[2:]]
    return [[re.sub(r"<[^>]*>", " ", cell).strip() for cell in row] for row in found]


def test_a_row_says_what_was_read_and_skipped():
    made = History()
    for event in lineage():
        made.add(event)
    page = as_section(made)
    first, second = rows(page)
    assert len(first) == len(second) == len(COLUMNS)
    assert first[1:5] == ["files", "1,500,000 (75%)", "2", f"{2 * 10 * STEPS:,}"]
    assert first[5].split() == ["102", "100", "too", "short", "2", "repeated", "words"]
    assert re.fullmatch(r"\d\.\d{3} training \d\.\d{3} validation", first[6]) and first[7] == "read"
    assert second[7] == "lost: words is no longer read"
    assert all(f'title="{name}"' in page for name in LONG_NAMES)


def test_events_of_an_older_version_have_losses_only():
    made = History()
    made.add({"event": "step", "sources": {"a": 1.0}})
    (row,) = rows(as_section(made))
    assert row == ["a", "&ndash;", "&ndash;", "&ndash;", "&ndash;", "&ndash;", "1.000 training", "read"]


def test_without_sources_there_is_no_table():
    assert as_section(History()) == ""
