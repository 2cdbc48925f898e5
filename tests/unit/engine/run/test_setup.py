"""From a preset to a run's components: shapes, the run event, and what a resume or a rollback starts with."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.checkpoint.folder import CheckpointFolder
from engine.config import Preset, parse_preset
from engine.device import machine
from engine.device.ranks import Ranks
from engine.errors import Diverged, PresetError
from engine.events import EventLog, read
from engine.run.setup import batch_shape, setup
from engine.run.state import Progress, RunState
from engine.screen.console import Console
from sources.loading.shape import BatchShape
from tests.helpers.folders import data_state, equal, events_of, progress, weights, whole
from tests.helpers.training import TOKENS_PER_STEP

BUDGET = 8 * TOKENS_PER_STEP  # of the fixture `build`, too


def test_a_batch_has_the_presets_shape_on_each_rank(tiny):
    ranks = Ranks(1, 3, torch.device("cpu"), None)
    assert batch_shape(tiny(), ranks) == BatchShape(8, 2, 32, 1, 3)
    assert batch_shape(tiny(), ranks).rows_per_step == 48


def test_a_new_lineage_has_all_its_components(tiny, build, tmp_path: Path):
    preset = tiny(train={"seed": 5})
    components = build(preset)
    assert components.is_new and components.optimizer is None and components.progress == Progress()
    assert components.shape == components.step_shape == BatchShape(8, 2, 32)
    assert components.tokenizer.vocab_size == 512 and components.evaluator.source_names == ["topics"]
    assert components.name == "tiny" and components.token_budget == BUDGET
    torch.manual_seed(5)
    expected = type(components.engine.module)(preset.model, 512, preset.auxiliary).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in components.engine.module.state_dict().items())
    state: RunState = components.run_state()
    assert state["loader"] is None and state["pins"].keys() == {"topics"} and state["rows_of_pass"] == 8
    assert json.loads(json.dumps(state)) == state


def test_the_run_event_holds_the_preset_and_what_follows(tiny, build, tmp_path: Path):
    preset = tiny()
    components = build(preset)
    (event,) = events_of(tmp_path, "run")
    model = components.engine.module
    assert event["event"] == "run" and event["machine"].startswith("CPU")
    assert parse_preset(event["preset"]) == preset
    assert event["derived"] == {
        "active_parameters": model.num_parameters(),
        "parameters": model.num_parameters(),
        "flops_per_token": model.flops_per_token(32),
        "vocab_size": 512,
        "zero_stage": 0,  # alone, a process divides nothing
        "seq_length": 32,
        "global_batch_tokens": TOKENS_PER_STEP,
        "held_out_tokens": components.evaluator.num_tokens,
        "held_out_shortfalls": {"topics": "holds no more documents that are held out"},
        "precision": "fp32",
        "compiled": False,
        "products": "torch",
        "lanes": 16,
        "rows_per_pass": 8,
        "data_workers": 0,
        "world_size": 1,
        "token_budget": BUDGET,
        "run": 1,
        "peak_flops": None,
        "memory_bytes": machine.total_memory(torch.device("cpu")),
        "bf16_instructions": None,
        "idle_gpus": 0,
    }
    assert 500 < event["derived"]["held_out_tokens"] <= preset.train.eval_tokens


def test_a_probed_micro_batch_is_in_the_run_event(tiny, build, tmp_path: Path):
    """Rows of a step stay as the preset has them."""
    components = build(tiny(train={"probe_batch": True, "deterministic": True, "per_gpu_batch_size": 4}))
    (event,) = events_of(tmp_path, "run")
    train = event["preset"]["train"]
    assert train["per_gpu_batch_size"] * train["accumulation_steps"] == components.shape.rows_per_step == 8
    assert train["per_gpu_batch_size"] == components.shape.micro_batch_size


@pytest.fixture
def resumed(trained: tuple[Preset, Path], tmp_path: Path) -> Preset:
    """A copy of a run of six steps in tmp_path."""
    preset, folder = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return preset


def test_a_run_continues_with_weights_moments_and_text(resumed: Preset, build, tmp_path: Path):
    model, optimizer, state = whole(tmp_path)
    number_of_events = len(read(tmp_path))
    components = build(resumed)
    assert not components.is_new and components.progress.step == 6
    assert components.progress.tokens_in_run == 6 * TOKENS_PER_STEP and not components.progress.finished
    assert equal(dict(components.engine.module.state_dict()), model) and equal(components.optimizer, optimizer)
    assert components.run_state()["loader"] == state["loader"] and components.guard.state() == state["guard"]
    resume, run = [event for event in read(tmp_path)[number_of_events:] if event["event"] != "stage"]
    assert (resume["event"], resume["step"], run["event"]) == ("resume", 6, "run")
    assert "with its optimizer and data position" in resume["message"]


def test_a_rollback_has_other_text_and_the_old_weights(resumed: Preset, build, tmp_path: Path):
    later = {**data_state(tmp_path), "guard": None}
    later["loader"] = {**later["loader"], "batch": 9}
    diverged = Diverged("3 steps in a row were skipped", "x", step=8, skipped=3, state=later, saved=False)
    components = build(resumed, diverged)
    assert components.progress.step == progress(tmp_path)["step"] == 6 and components.progress.skipped == 3
    assert components.run_state()["loader"]["batch"] == 9 and not components.guard.state()["losses"]
    assert equal(dict(components.engine.module.state_dict()), weights(tmp_path))
    (rollback,) = events_of(tmp_path, "rollback")
    assert (rollback["step"], rollback["to_step"], rollback["reason"]) == (8, 6, "3 steps in a row were skipped")


def test_stage_3_synchronizes_a_gpu_itself(tiny, tmp_path: Path):
    """Refused before anything is opened, so without a GPU as well."""
    preset, log = tiny(train={"forbid_synchronization": True, "zero_stage": 3}), EventLog(tmp_path, Console())
    ranks = Ranks(0, 1, torch.device("cuda"), None)
    with pytest.raises(PresetError, match=r"set train\.zero_stage to 2"):
        setup(preset, BUDGET, CheckpointFolder(tmp_path), ranks, log, lambda sentence: False)
    assert not list(tmp_path.iterdir())
