"""Models of experts through the real engine: whole runs, resumed, upcycled; experts spread over two processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import train
from engine.errors import Interrupted, PresetError
from model import load
from model.experts import sparse_layers
from tests.helpers.folders import events_of
from tests.helpers.processes import run_ranks
from tests.helpers.training import TOKENS_PER_STEP, by_step, signal_after, train_with
from tests.helpers.workers import experts

EXPERTS = {"num_experts": 4, "bias": False, "mlp": "swiglu"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "lm_current.pth", weights_only=True)["model"]


def test_a_run_that_is_stopped_and_continued_has_the_same_bits(tiny, tmp_path: Path):
    preset = tiny(model=EXPERTS, train={"optimizer": "muon"}, auxiliary={"expert_balance_weight": 0.01})
    budget = 12 * TOKENS_PER_STEP
    train(preset, token_budget=budget, checkpoint_dir=tmp_path / "whole")
    signal_after(tmp_path / "parts", steps=5)
    with pytest.raises(Interrupted):
        train(preset, token_budget=budget, checkpoint_dir=tmp_path / "parts")
    train(preset, token_budget=budget, checkpoint_dir=tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    biases = whole["blocks.0.mlp.router.expert_bias"]
    assert biases.any() and biases.abs().max() <= 12.5e-3  # 12 steps of 1e-3; none of the warm-up's

    (run,), step = events_of(tmp_path / "whole", "run"), events_of(tmp_path / "whole", "step")[-1]
    assert step["auxiliary"].keys() == {"block_0_max_violation", "block_1_max_violation"}
    assert all(0 <= value < 3 for value in step["auxiliary"].values())
    derived, lm = run["derived"], load(tmp_path / "whole" / "lm_current.pth")
    assert derived["parameters"] == lm.model.num_parameters() > derived["active_parameters"]
    assert derived["flops_per_token"] == lm.model.flops_per_token()
    assert torch.equal(sparse_layers(lm.model.blocks)[0].router.expert_bias, biases)
    assert lm.generate("The", max_new_tokens=8, seed=0)


def test_a_dense_lineage_goes_on_with_experts(tiny, tmp_path: Path):
    budget = 6 * TOKENS_PER_STEP
    train(tiny(model={"bias": False}), token_budget=budget, checkpoint_dir=tmp_path)
    last = events_of(tmp_path, "evaluation")[-1]["ce"]
    sparse = tiny(model={"bias": False, "num_experts": 4, "expert_hidden_size": 128}, train={"learning_rate": 1e-9})
    train(sparse, token_budget=budget, checkpoint_dir=tmp_path)
    assert events_of(tmp_path, "evaluation")[-1]["ce"] == pytest.approx(last, abs=1e-4)
    (resumed,) = events_of(tmp_path, "resume")
    assert "Its MLPs became experts" in resumed["message"]
    assert "Starting fresh: blocks.0.mlp.router.weight" in resumed["message"]
    assert not [name for name in weights(tmp_path) if "mlp.up" in name]


def test_what_cannot_become_experts_is_refused(tiny, tmp_path: Path):
    train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    with pytest.raises(PresetError, match="does not fit this preset: its MLPs have biases, and experts have none"):
        train(tiny(model={"num_experts": 4}), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)


def test_a_group_of_processes_that_does_not_exist_is_refused(tiny, tmp_path: Path):
    preset = tiny(model=EXPERTS, train={"expert_parallel_size": 2})
    with pytest.raises(PresetError, match="1 processes cannot be divided into groups of 2"):
        train(preset, token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)


def losses(folder: Path, *, processes: int, optimizer: str, stage: int, size: int) -> dict[str, Any]:
    output = folder / f"{processes}-{optimizer}-{stage}-{size}.json"
    arguments = [str(output), optimizer, str(stage), str(size)]
    run_ranks(Path(experts.__file__), *arguments, processes=processes, timeout=300)
    return json.loads(output.read_text())


@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [("muon", 2), pytest.param("adamw", 1, marks=pytest.mark.slow), pytest.param("muon", 1, marks=pytest.mark.slow)],
)
def test_experts_spread_over_two_processes_train_as_in_one(optimizer: str, stage: int, tmp_path: Path):
    one = losses(tmp_path, processes=1, optimizer=optimizer, stage=stage, size=1)
    two = losses(tmp_path, processes=2, optimizer=optimizer, stage=stage, size=2)
    for part in ("losses", "continued", "resumed"):
        for there, here in zip(two[part], one[part], strict=True):
            assert there == pytest.approx(here, rel=2e-3, abs=0.02 if part != "losses" else 2e-3)
    assert two["resumed"] == two["continued"] and not two["missing"]
    assert two["shapes"] == one["shapes"] and two["moments"] == one["moments"]
    assert two["held"] < 0.75 * one["held"]


@pytest.mark.slow
def test_stage_3_divides_whole_experts(tmp_path: Path):
    one = losses(tmp_path, processes=1, optimizer="muon", stage=1, size=1)
    two = losses(tmp_path, processes=2, optimizer="muon", stage=3, size=1)
    assert two["losses"] == [pytest.approx(step, rel=2e-3, abs=2e-3) for step in one["losses"]]
    assert two["resumed"] == two["continued"] and two["shapes"] == one["shapes"]


@pytest.mark.slow
def test_four_processes_share_two_parts_of_the_experts(tmp_path: Path):
    """Each part is on two of them, which divide its moments."""
    one = losses(tmp_path, processes=1, optimizer="muon", stage=1, size=1)
    four = losses(tmp_path, processes=4, optimizer="muon", stage=1, size=2)
    assert four["losses"] == [pytest.approx(step, rel=2e-3, abs=2e-3) for step in one["losses"]]
    assert four["resumed"] == four["continued"] and four["moments"] == one["moments"]


@pytest.mark.slow
def test_a_run_on_two_processes_leaves_one_whole_snapshot(tiny, tmp_path: Path):
    one = tiny(model=EXPERTS, train={"per_gpu_batch_size": 8})
    two = tiny(model=EXPERTS, train={"per_gpu_batch_size": 4, "expert_parallel_size": 2})
    folders = tmp_path / "one", tmp_path / "two"
    budget = 8 * TOKENS_PER_STEP
    events = [
        train_with(n, preset, folder, budget) for n, preset, folder in zip((1, 2), (one, two), folders, strict=True)
    ]
    here, there = map(by_step, events)
    assert there.keys() == here.keys() and all(abs(there[step] - here[step]) < 2e-3 for step in here)
    assert {name: t.shape for name, t in weights(folders[1]).items()} == {
        name: t.shape for name, t in weights(folders[0]).items()
    }
    assert [event for event in events[1] if event["event"] == "evaluation"][-1]["sample"]["text"]
    # and one process goes on with it
    train(one, token_budget=budget, checkpoint_dir=folders[1])


@pytest.mark.slow
def test_compiled_trains_what_uncompiled_does(tiny, tmp_path: Path):
    found = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        preset = tiny(model=EXPERTS, train={"compile": compiled})
        train(preset, token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=folder)
        assert events_of(folder, "run")[0]["derived"]["compiled"] is compiled
        found.append(events_of(folder, "step"))
    for plain, compiled in zip(*found, strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], abs=2e-3)
        assert compiled["auxiliary"] == pytest.approx(plain["auxiliary"], abs=0.05)
