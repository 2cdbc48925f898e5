"""Runs whose rows grow: the same run, to the bit, wherever it is stopped; and lineages that go on with longer rows."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CURRENT, CheckpointFolder
from engine.errors import Interrupted
from engine.run.trainer import Trainer
from model import load
from tests.helpers.folders import events_of, progress
from tests.helpers.look_ahead import PARTS
from tests.helpers.training import TOKENS_PER_STEP, by_step, train_with

STEPS = 12
BUDGET = STEPS * TOKENS_PER_STEP
SCHEDULE = [[0, 8], [0.3, 16], [0.7, 32]]  # the second begins with step 5, the third with step 10
ROTARY = {"positions": "rotary", "rope_scaling": "yarn", "layer_rescaling": "residual"}


def growing(tiny, model: dict = ROTARY, schedule: list = SCHEDULE, train: dict | None = None, **sections):
    return tiny(model=model, train={"seq_length_schedule": schedule, **(train or {})}, **sections)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / CURRENT, weights_only=True)["model"]


def same_run(one: Path, other: Path) -> None:
    """Equal losses and weights, to the bit, moments and place in the text."""
    losses = [by_step(events_of(folder, "step")) for folder in (one, other)]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    whole, parts = (CheckpointFolder(folder).newest() for folder in (one, other))
    assert whole.data["loader"] == parts.data["loader"]
    for name, moments in whole.optimizer["moments"].items():
        assert all(torch.equal(moment, parts.optimizer["moments"][name][key]) for key, moment in moments.items())


@pytest.fixture
def stop_after(monkeypatch) -> Callable[[int], None]:
    """Has the run get a signal within the step of this number, once."""

    def stop(number: int) -> None:
        step = Trainer._step

        def signalled(self, *arguments):
            result = step(self, *arguments)
            if self.progress.step == number - 1:
                os.kill(os.getpid(), signal.SIGTERM)
                monkeypatch.setattr(Trainer, "_step", step)
            return result

        monkeypatch.setattr(Trainer, "_step", signalled)

    return stop


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole")


def test_rows_grow_within_a_run(tiny, whole: Path):
    result = train(growing(tiny), token_budget=BUDGET, checkpoint_dir=whole)
    assert result.tokens == BUDGET
    runs = [event["derived"] for event in events_of(whole, "run")]
    assert [run["seq_length"] for run in runs] == [8, 16, 32]
    assert {run["global_batch_tokens"] for run in runs} == {TOKENS_PER_STEP}
    assert [event["step"] for event in events_of(whole, "step")] == list(range(1, STEPS + 1))
    saved = progress(whole)
    assert saved["step"] == STEPS and saved["longer_since"] == 9 * TOKENS_PER_STEP
    model = load(whole / CURRENT).model
    assert (model.config.rope_factor, model.config.rope_original_length, model.config.seq_length) == (4.0, 8, 32)
    factors = [block.layer_factor.item() for block in model.blocks]
    assert all(factor != 1 for factor in factors), "fitted"
    tokens = CheckpointFolder(whole).newest().data["loader"]["tokens_per_source"]
    assert sum(tokens.values()) == BUDGET


@pytest.mark.parametrize("stop", [3, 4, 6, 9, 11])
def test_a_run_that_is_stopped_around_a_switch_is_the_same(tiny, whole: Path, tmp_path: Path, stop_after, stop: int):
    """Before it, right at it, and once longer rows are trained on."""
    if not (whole / CURRENT).exists():
        train(growing(tiny), token_budget=BUDGET, checkpoint_dir=whole)
    stop_after(stop)
    with pytest.raises(Interrupted, match=f"SIGTERM at step {stop}"):
        train(growing(tiny), token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert progress(tmp_path)["step"] == stop
    train(growing(tiny), token_budget=BUDGET, checkpoint_dir=tmp_path)
    same_run(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sections"),
    [
        ({"position_extension": "resample"}, {"auxiliary": PARTS | {"value_horizons": [4, 16]}}),
        ({}, {"train": {"optimizer": "muon", "batch_doublings": [0.5]}}),
        (ROTARY, {"train": {"compile": True}}),
        (ROTARY, {"data": {"document_mask": True, "packing": "pad"}, "auxiliary": {"enable_curriculum": True}}),
    ],
)
def test_rows_grow_beside_everything_else(tiny, tmp_path: Path, stop_after, model: dict, sections: dict):
    schedule = [[0, 16], [0.4, 32]]
    preset = growing(tiny, model, schedule, **sections)
    train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path / "one")
    stop_after(2)
    with pytest.raises(Interrupted):
        train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path / "two")
    train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path / "two")
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_processes_go_over_to_longer_rows_as_one_does(tiny, tmp_path: Path):
    """Not to the bit: sums over ranks are other sums."""
    losses = []
    for processes, rows in ((1, 8), (2, 4)):
        preset = growing(tiny, train={"per_gpu_batch_size": rows})
        losses.append(by_step(train_with(processes, preset, tmp_path / str(processes), BUDGET)))
    assert losses[0].keys() == losses[1].keys() and len(losses[0]) == STEPS
    assert max(abs(losses[0][step] - losses[1][step]) for step in losses[0]) < 1e-3


def test_without_a_schedule_every_row_is_as_long(tiny, tmp_path: Path):
    """A schedule of one length is none, to the bit."""
    for name, schedule in (("none", []), ("one", [[0, 32]])):
        train(growing(tiny, {}, schedule), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / name)
    none, one = (by_step(events_of(tmp_path / name, "step")) for name in ("none", "one"))
    assert none == one and len(events_of(tmp_path / "one", "run")) == 1
    first, second = weights(tmp_path / "none"), weights(tmp_path / "one")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("model", [ROTARY, {"position_extension": "resample"}, {}])
def test_a_lineage_goes_on_with_longer_rows(tiny, tmp_path: Path, stop_after, model: dict):
    """Its moments, its place in the text and the tokens of a step stay; a stop in between changes nothing."""
    short = tiny(model={**model, "seq_length": 16}, train={"per_gpu_batch_size": 16})
    long = tiny(model=model)
    for name, stops in (("one", False), ("two", True)):
        folder = tmp_path / name
        train(short, token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=folder)
        if stops:
            stop_after(6)
            with pytest.raises(Interrupted):
                train(long, token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=folder)
        train(long, token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=folder)
        resumed = [event["message"] for event in events_of(folder, "resume")]
        assert "with its optimizer and data position" in resumed[0]
        assert "Rows of 16 tokens become rows of 32." in resumed[0]
        assert not any("moments start at zero" in message for message in resumed)
    one, two = (by_step(events_of(tmp_path / name, "step")) for name in ("one", "two"))
    assert one == two and len(one) == 8
    assert progress(tmp_path / "one")["longer_since"] == 0
    rates = [event["lr"] for event in events_of(tmp_path / "one", "step")]
    assert max(rates[4:]) < 0.5 * max(rates[:4]), "warmed again to 30% of the peak"
    assert all(
        torch.equal(a, b) for a, b in zip(*(weights(tmp_path / n).values() for n in ("one", "two")), strict=True)
    )
    assert len(list(itertools.chain(load(tmp_path / "one" / CURRENT).stream("The", max_new_tokens=30)))) > 0
