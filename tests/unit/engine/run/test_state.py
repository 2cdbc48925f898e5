"""What a checkpoint holds of a run, as JSON that older and newer versions read."""

import json
from dataclasses import asdict
from pathlib import Path

from engine import TrainResult
from engine.config import Preset
from engine.run.state import Progress, RunState
from sources.loading.state import is_readable
from tests.helpers.folders import data_state, progress
from tests.helpers.training import TOKENS_PER_STEP


def test_unknown_keys_of_a_progress_are_ignored():
    saved = {
        "run": 3,
        "step": 40,
        "tokens_in_run": 5,
        "tokens_total": 900,
        "generation": "ab12",
        "of a later version": 1,
    }
    assert Progress.from_json(saved) == Progress(run=3, step=40, tokens_in_run=5, tokens_total=900)


def test_an_older_progress_has_the_defaults():
    """As do snapshots that had no count of skipped steps."""
    assert Progress.from_json({}) == Progress(1, 0, 0, 0, None, False, 0)
    assert Progress.from_json({"step": 7, "tokens_total": 70}).skipped == 0


def test_a_progress_survives_its_snapshot(trained: tuple[Preset, Path]):
    saved = progress(trained[1])
    read = Progress.from_json(saved)
    assert asdict(read) | {"generation": saved["generation"]} == saved
    assert (read.step, read.tokens_in_run, read.finished, read.skipped) == (6, 6 * TOKENS_PER_STEP, True, 0)


def test_a_run_state_is_json_with_its_keys(trained: tuple[Preset, Path]):
    state: RunState = data_state(trained[1])
    assert state.keys() == RunState.__annotations__.keys()
    assert json.loads(json.dumps(state)) == state
    assert is_readable(state["loader"]) and state["loader"]["batch"] == 6
    assert state["pins"].keys() == {"topics"} and state["rows_of_pass"] == 8
    assert state["adaptive"] is None and state["curriculum"] is None and len(state["guard"]["losses"]) == 6


def test_a_result_says_how_it_went_and_how_to_go_on():
    result = TrainResult(1_234_567, 89_012.4, 4.0, 54.6, 1.5, Path("checkpoints/lm_current.pth"))
    assert result.summary() == (
        "Done: 1,234,567 tokens at 89,012 tokens/s. The model is checkpoints/lm_current.pth; to generate with it, "
        "start main.py again and press g. The report is checkpoints/report.html: open it in a browser."
    )
