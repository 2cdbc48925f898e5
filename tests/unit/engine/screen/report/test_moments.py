"""The events that are listed, newest first."""

import re

from engine.screen.report.history import LISTED, History
from engine.screen.report.moments import SHOWN, WORDS, as_section
from tests.helpers.lineage import lineage


def test_what_happened_is_counted_and_listed():
    made = History()
    for event in lineage():
        made.add(event)
    page = as_section(made)
    assert "2 starts, 2 saves, 1 resume, 2 spikes, 2 skipped steps, 1 rollback." in page
    kinds = re.findall(r'<li class="(\w+)">', page)
    assert sorted(kinds) == sorted(["rollback", "dropped", "resume", *["notice", "spike", "skip"] * 2])
    times = re.findall(r"<small>(\S+ \S+)", page)
    assert times == sorted(times, reverse=True)
    assert "Step 25: loss 9.5000 is above 7.2500." in page and "loss not finite" in page
    assert "From step 90 back to step 80." in page and "run 2 continues words" in page


def test_every_kind_that_is_kept_has_a_word():
    assert set(WORDS) == set(LISTED)


def test_many_events_are_folded():
    made = History()
    for number in range(50):
        made.add({"event": "source", "what": "retry", "time": number, "name": "a", "message": f"no answer {number}"})
    page = as_section(made)
    assert page.partition("<details>")[0].count("<li") == SHOWN and "20 earlier" in page
    assert page.index("no answer 49") < page.index("no answer 48")


def test_a_folder_without_events_has_counts_of_zero():
    assert "0 starts" in as_section(History())
