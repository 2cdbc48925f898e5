"""Source weights for the end of a run: when they count, which they are, and across a restart."""

import json
from pathlib import Path

import pytest

from engine.data.adaptive import DELAY_STEPS
from engine.data.final_sources import NEXT_TO_NOTHING, FinalSources
from engine.events import EventLog, read
from engine.screen.console import Console
from sources.config import DataConfig

BASE = {"a": 3.0, "b": 1.0, "c": 1.0}
FINAL = {"b": 2.0, "c": 6.0}


def data(**keys) -> DataConfig:
    sources = [{"type": "files", "path": name} for name in BASE]
    given = {"mix_strategy": "weighted", "source_weights": {"a": 3.0}, "final_source_weights": FINAL}
    return DataConfig(sources=sources, **(given | keys))


@pytest.fixture
def make(tmp_path: Path):
    log = EventLog(tmp_path, Console(enabled=False))
    yield lambda config, run=1, saved=None: FinalSources(config, 1000, run, log, saved)
    log.close()


def test_the_last_part_of_a_run_has_them(make, tmp_path: Path):
    final = make(data(final_fraction=0.25))
    for number, tokens in enumerate((0, 500, 749)):
        final.after_step(number, tokens)
    assert final.state() is None and final.weights_at(10**9, BASE) == BASE and not read(tmp_path)
    for number, tokens in enumerate((750, 900), 3):
        final.after_step(number, tokens)
    first = 3 + DELAY_STEPS
    assert final.weights_at(first - 1, BASE) == BASE
    assert final.weights_at(first, BASE) == {"a": NEXT_TO_NOTHING, **FINAL}
    (event,) = read(tmp_path)
    assert event["message"] == f"the end of the run: token shares from batch {first} on: a 0.0%, b 25.0%, c 75.0%"


def test_weights_that_follow_the_losses_still_do(make):
    final = make(data())
    final.after_step(0, 900)
    found = final.weights_at(DELAY_STEPS, {"a": 6.0, "b": 0.5, "c": 1.0})
    assert found == {"a": 2 * NEXT_TO_NOTHING, "b": 1.0, "c": 6.0}


def test_a_restart_keeps_the_decision_and_another_run_makes_its_own(make):
    first = make(data())
    first.after_step(70, 950)
    saved = json.loads(json.dumps(first.state()))
    again = make(data(), saved=saved)
    again.after_step(71, 960)
    assert again.state() == saved == {"run": 1, "first": 70 + DELAY_STEPS}
    assert make(data(), run=2, saved=saved).state() is None


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"final_source_weights": {"d": 1.0}}, '"final_source_weights" names "d", which is no source here'),
        ({"final_source_weights": {"a": 0.0}}, "has zeros alone"),
        ({"final_source_weights": {}, "final_fraction": 0.2}, '"final_fraction" has no effect'),
        ({"mix_strategy": "sequential", "source_weights": {}}, 'no effect with "mix_strategy": "sequential"'),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict, reason: str):
    with pytest.raises(ValueError, match=reason):
        data(**keys)
