"""When the watch speaks, on curves as runs have them."""

import json
import math
import random
from pathlib import Path

import pytest

from engine import train
from engine.checks.overfitting import OverfittingWatch
from engine.config import parse_preset
from engine.events import read
from tests.helpers.text import write_topics
from tests.helpers.training import tiny_values


def said(validation: list[float], training: list[float], watch: OverfittingWatch | None = None) -> list[int]:
    """The numbers of the evaluations after which something is said."""
    watch = watch or OverfittingWatch()
    found = []
    for number, (loss, trained) in enumerate(zip(validation, training, strict=True), start=1):
        watch.after_step(trained)
        if watch.after_evaluation(100 * number, loss, tokens=1000):
            found.append(number)
    return found


def falling(number: int) -> list[float]:
    return [6 * math.exp(-0.2 * i) for i in range(number)]


def turning(number: int, turn: int, rise: float = 0.05) -> list[float]:
    """A validation loss that rises by `rise` an evaluation from `turn` on."""
    return [
        3 + 2 * math.exp(-0.4 * i) if i <= turn else 3 + 2 * math.exp(-0.4 * turn) + rise * (i - turn)
        for i in range(number)
    ]


def test_a_turn_is_said_once_and_soon():
    assert said(turning(20, turn=8), falling(20)) == [13]  # the ninth is the best


def test_the_sentence_has_the_best_step_and_what_to_do():
    watch, sentences = OverfittingWatch(), []
    for step, loss in enumerate(turning(20, turn=8), start=1):
        watch.after_step(50.0 - step)
        sentences.append(watch.after_evaluation(1000 * step, loss, tokens=1000))
    assert next(filter(None, sentences)) == (
        "The validation loss has risen from 3.082 at step 9,000, its best, to 3.282, while the training loss falls: "
        "the model memorises its text. Stop the run, add text, or train a smaller model or one with model.dropout."
    )


def test_a_loss_that_falls_says_nothing():
    assert said(falling(40), falling(40)) == []


def test_a_rise_of_both_losses_is_no_overfitting():
    """As after a spike, or when a second run warms up again."""
    rising = [5.0, 4.0, 3.0, 3.2, 3.3, 3.4, 3.5]
    assert said(rising, rising) == []


def test_noise_about_a_flat_curve_mostly_says_nothing():
    generator, spoken = random.Random(0), 0
    for _ in range(100):
        curve = [3 + max(0, 2 - 0.5 * i) + generator.gauss(0, 0.03) for i in range(40)]
        spoken += bool(said(curve, falling(40)))
    assert spoken <= 4


def test_noise_makes_it_wait_for_a_larger_rise():
    quiet, noisy = turning(60, turn=8), turning(60, turn=8)
    noisy = [loss + (0.04 if i % 2 else -0.04) for i, loss in enumerate(noisy)]
    assert said(noisy, falling(60)) > said(quiet, falling(60))


def test_it_survives_a_restart_at_any_evaluation():
    validation, training = turning(20, turn=8), falling(20)
    for first in range(1, 20):
        watch = OverfittingWatch()
        before = said(validation[:first], training[:first], watch)
        watch.after_step(training[first])  # and half an interval more
        watch = OverfittingWatch.from_state(json.loads(json.dumps(watch.state())))
        found = []
        for number in range(first, 20):
            watch.after_step(training[number])
            if watch.after_evaluation(100 * number + 100, validation[number], tokens=1000):
                found.append(number + 1)
        assert before + found == [13]


def test_another_validation_set_begins_another_curve():
    watch = OverfittingWatch()
    assert said(turning(11, turn=8), falling(11), watch) == []
    watch.after_step(0.1)
    assert watch.after_evaluation(1200, 3.4, tokens=2000) is None
    assert watch.best == watch.curve[0]


def test_a_checkpoint_without_a_state_starts_one():
    assert OverfittingWatch.from_state(None) == OverfittingWatch()


@pytest.mark.slow
def test_a_run_that_overfits_says_so_once(tmp_path: Path):
    """A model that is large for its 50 kB of text."""
    (tmp_path / "topics").mkdir()
    values = tiny_values(write_topics(tmp_path / "topics", every=8), model={"hidden_size": 128, "seq_length": 64})
    values["train"] |= {"learning_rate": 5e-3, "eval_interval_tokens": 16_384}
    train(parse_preset(values), token_budget=600_000, checkpoint_dir=tmp_path / "checkpoints")
    found = read(tmp_path / "checkpoints")
    said = [event for event in found if event["event"] == "advice" and event["topic"] == "overfitting"]
    assert len(said) == 1
    losses = [(event["ce"], event["step"]) for event in found if event["event"] == "evaluation"]
    loss, step = min(losses)
    assert f"from {loss:.3f} at step {step:,}, its best" in said[0]["message"]
