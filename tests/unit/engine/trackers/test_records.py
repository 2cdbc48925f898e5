"""What trackers show of each kind of event."""

import math

import pytest

from engine.trackers.records import record_of
from tests.helpers.tracked import evaluation_event, event, resume_event, run_event, step_event


def test_a_steps_figures_have_names_and_both_counts():
    record = record_of(step_event(7, auxiliary={"policy": 0.25}))
    assert (record.kind, record.step, record.tokens) == ("step", 7, 700)
    assert record.scalars["train/loss"] == 4.30123
    assert record.scalars["lookahead/policy"] == 0.25
    assert "train/mfu" not in record.scalars  # which is unknown here


def test_sources_have_curves_where_there_are_several():
    assert "train/loss_of/notes" not in record_of(step_event(1)).scalars
    record = record_of(step_event(1, sources={"notes": 4.0, "papers": 5.0}))
    assert (record.scalars["train/loss_of/notes"], record.scalars["train/loss_of/papers"]) == (4.0, 5.0)


def test_figures_that_are_not_finite_are_left_out():
    assert "train/gradient_norm" not in record_of(step_event(1, grad_norm=math.nan)).scalars


def test_an_evaluation_has_its_figures_and_its_sample():
    record = record_of(evaluation_event(5))
    assert record.scalars == {"validation/loss": 3.0, "validation/perplexity": 20.0, "validation/bits_per_byte": 1.0}
    assert record.texts == {"sample": "Once <b> upon a time\nthere"}


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (resume_event(3), "resumed checkpoints/lm_current.pth"),
        (event("source", name="web", what="retry", message="the network fails"), "source web: the network fails"),
        (event("skip", step=3, reason="non-finite loss", loss=math.nan), "skipped: non-finite loss (loss nan)"),
        (event("skip", step=3, reason="non-finite loss", loss=None), "skip: non-finite loss"),
        (event("advice", topic="overfitting", message="Stop."), "advice: Stop."),
    ],
)
def test_other_events_are_notes(one: dict, text: str):
    assert record_of(one).texts == {"notes": text}


@pytest.mark.parametrize("one", [run_event(), event("save", path="lm_current.pth", step=1), event("unknown")])
def test_of_some_kinds_nothing_is_shown(one: dict):
    assert record_of(one) is None
