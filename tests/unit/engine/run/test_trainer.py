"""The loop from the first step to the last token: when it evaluates, saves and stops."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import TrainResult
from engine.checkpoint.folder import CheckpointFolder
from engine.config import Preset
from engine.control.signals import watch_signals
from engine.device.ranks import join
from engine.errors import Interrupted
from engine.events import EventLog, read
from engine.run.setup import setup
from engine.run.trainer import Trainer
from engine.screen.console import Console
from tests.helpers.folders import events_of, progress
from tests.helpers.training import TOKENS_PER_STEP


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., TrainResult]]:
    """Trains a preset for some steps in tmp_path; `listener` is called with each event."""
    ranks, console = join(), Console(enabled=False)

    def train(preset: Preset, steps: int, listener: Callable[[dict], None] = lambda event: None) -> TrainResult:
        log = EventLog(tmp_path, console, listeners=[listener])
        with watch_signals(ranks, console) as watch:
            folder, budget = CheckpointFolder(tmp_path), steps * TOKENS_PER_STEP
            components = setup(preset, budget, folder, ranks, log, lambda sentence: False)
            try:
                return Trainer(components, watch).train()
            finally:
                components.close()
                log.close()

    return train


def test_a_run_evaluates_on_its_way_and_at_its_end(tiny, run, tmp_path: Path):
    result = run(tiny(train={"eval_interval_tokens": 2 * TOKENS_PER_STEP}), 5)
    kinds = [(event["event"], event["step"]) for event in read(tmp_path) if event["event"] in ("step", "evaluation")]
    steps = [("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("step", 4), ("evaluation", 4), ("step", 5)]
    assert kinds == [*steps, ("evaluation", 5)]
    assert [event["step"] for event in events_of(tmp_path, "save")] == [0, 5]
    saved = progress(tmp_path)
    assert (saved["step"], saved["tokens_in_run"], saved["finished"]) == (5, 5 * TOKENS_PER_STEP, True)
    last = events_of(tmp_path, "evaluation")[-1]
    assert result == TrainResult(
        tokens=5 * TOKENS_PER_STEP,
        tokens_per_second=pytest.approx(result.tokens_per_second),
        eval_loss=last["ce"],
        eval_perplexity=last["perplexity"],
        bits_per_byte=last["bits_per_byte"],
        snapshot=CheckpointFolder(tmp_path).current,
    )
    assert saved["evaluation"] == {key: last[key] for key in ("ce", "perplexity", "bits_per_byte")}


def test_the_learning_rate_follows_its_schedule(tiny, run, tmp_path: Path):
    run(tiny(train={"learning_rate": 0.01, "warmup_fraction": 0.5, "final_learning_rate_fraction": 0.1}), 8)
    rates = [event["lr"] for event in events_of(tmp_path, "step")]
    assert rates[:5] == sorted(rates[:5]) and rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[4] == pytest.approx(0.01) and rates[-1] < 0.005


def test_without_a_validation_set_there_are_no_figures(tiny, run, tmp_path: Path):
    result = run(tiny(train={"eval_tokens": 1}), 2)
    assert (result.eval_loss, result.eval_perplexity, result.bits_per_byte) == (None, None, None)
    assert not events_of(tmp_path, "evaluation") and progress(tmp_path)["evaluation"] is None
    assert progress(tmp_path)["finished"]


def test_a_signal_saves_the_step_before(tiny, run, tmp_path: Path):
    def interrupt(event: dict) -> None:
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"SIGTERM at step 3; saved to .*lm_current\.pth, the next start") as caught:
        run(tiny(), 6, interrupt)
    assert caught.value.status == 143
    saved = progress(tmp_path)
    assert (saved["step"], saved["finished"]) == (3, False)
    result = run(tiny(), 6)
    assert result.tokens == 6 * TOKENS_PER_STEP
    assert [event["step"] for event in events_of(tmp_path, "step")] == [1, 2, 3, 4, 5, 6]
