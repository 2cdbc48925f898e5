"""The preset, what derives from it, and the machine."""

import html
import json
import re

from engine.screen.report.history import History
from engine.screen.report.preset import as_section
from tests.helpers.run_event import RUN


def test_derived_figures_and_the_whole_preset_are_there():
    made = History()
    made.add(RUN | {"time": 0})
    page = as_section(made)
    facts = dict(re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", page))
    assert facts["Parameters"] == "15,300,000" and facts["Tokens of a step"] == "512"
    assert facts["Steps of a run"] == f"{-(-100_000_000 // 512):,}" and facts["Micro-batch"] == "8 rows, 2 a step"
    assert facts["Machine"] == RUN["machine"] and facts["Latest start"] == "1970-01-01 00:00 UTC"
    assert json.loads(html.unescape(page.partition("<pre>")[2].partition("</pre>")[0])) == RUN["preset"]


def test_what_an_older_version_did_not_write_is_left_out():
    made = History()
    made.add({"event": "run", "preset": {"name": "old"}})
    page = as_section(made)
    assert "Preset old" in page and "Parameters" not in page and "Micro-batch" not in page


def test_without_a_run_there_is_none():
    assert as_section(History()) == ""
