"""Whole runs with bad steps: skipped, stopped, rolled back, resumed. Losses are spoilt where the model returns them."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CURRENT, PREV
from engine.config import Preset
from engine.data.source_losses import UNIT
from engine.device.determinism import CUBLAS_WORKSPACE
from engine.errors import Diverged, Interrupted
from engine.run.stability import all_finite
from model import TransformerLM
from tests.helpers.folders import data_state, equal, events_of, progress, whole
from tests.helpers.processes import run_ranks
from tests.helpers.training import TOKENS_PER_STEP, signal_after
from tests.helpers.workers import divergence

MICRO_BATCHES = 2  # of one step of the tiny preset
FORWARD = TransformerLM.forward


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, torch.Tensor], float]], None]:
    """Multiplies the training losses by `factor(step, input_ids)`, the step being counted from 0 over all starts."""

    def install(factor: Callable[[int, torch.Tensor], float]) -> None:
        forwards = itertools.count()

        def forward(
            self: TransformerLM, input_ids: torch.Tensor, *inputs: Any, **options: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            loss_sum, token_nll = FORWARD(self, input_ids, *inputs, **options)
            trains = self.training and input_ids.any()  # the warm-up reads the same token everywhere
            scale = factor(next(forwards) // MICRO_BATCHES, input_ids) if trains else 1.0
            return loss_sum * scale, token_nll * scale

        monkeypatch.setattr(TransformerLM, "forward", forward)

    return install


def test_a_bad_step_is_skipped_and_its_batch_is_not_read_again(tiny, spoil, tmp_path: Path, capsys):
    spoil(lambda step, _: math.nan if step in (2, 5) else 1.0)
    result = train(tiny(), token_budget=10 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert result.tokens == 10 * TOKENS_PER_STEP and math.isfinite(result.eval_loss)
    saved = progress(tmp_path)
    assert (saved["step"], saved["tokens_total"], saved["skipped"]) == (10, 10 * TOKENS_PER_STEP, 2)
    assert data_state(tmp_path)["loader"]["batch"] == 12, "what was skipped is not read again"
    skips = events_of(tmp_path, "skip")
    assert [(skip["step"], skip["in_a_row"], skip["total"]) for skip in skips] == [(3, 1, 1), (5, 1, 2)]
    assert {(skip["reason"], skip["loss"], skip["grad_norm"]) for skip in skips} == {("non-finite loss", None, None)}
    steps = events_of(tmp_path, "step")
    assert [step["step"] for step in steps] == list(range(1, 11)) and all(step["loss"] < 7 for step in steps)
    output = capsys.readouterr().out
    assert "step 3: non-finite loss (loss nan); 1 in a row, 1 in all" in output and "OVERFLOW" not in output


def test_too_many_in_a_row_stop_the_run_and_leave_the_snapshots(tiny, spoil, tmp_path: Path):
    train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    spoil(lambda step, _: 1.0 if step in (0, 3) else math.nan)
    preset = tiny(train={"max_skipped_steps": 3, "save_interval_minutes": 1e-9})
    with pytest.raises(Diverged, match=r"lower train\.learning_rate in preset tiny") as caught:
        train(preset, token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert caught.value.status == 1
    assert str(caught.value).startswith("3 steps in a row were skipped, the last for a non-finite loss, after step 6.")
    assert "or set train.on_divergence to" in str(caught.value)
    assert [skip["in_a_row"] for skip in events_of(tmp_path, "skip")] == [1, 2, 1, 2, 3]
    saves = [save["step"] for save in events_of(tmp_path, "save")]
    assert saves == [0, 4, 5, 6], "no generation of a state that is in doubt"
    after = sorted(path.read_bytes() for path in tmp_path.glob("lm_prev2.pth"))
    assert after == [before[CURRENT]]


def test_what_follows_the_losses_never_sees_a_bad_step(tiny, spoil, tmp_path: Path):
    spoil(lambda step, _: math.nan if step in (2, 5) else 1.0)
    preset = tiny(auxiliary={"enable_adaptive_sources": True, "enable_curriculum": True})
    train(preset, token_budget=10 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    data = data_state(tmp_path)
    nll, labels = data["adaptive"]["sums"]["topics"]
    steps = events_of(tmp_path, "step")
    assert labels == data["adaptive"]["tokens"] == data["curriculum"]["tokens"] == 10 * TOKENS_PER_STEP
    assert nll * UNIT / labels == pytest.approx(sum(step["loss"] for step in steps) / len(steps))
    assert (data["curriculum"]["step"], sum(data["curriculum"]["counts"])) == (10, 10 * 8 * MICRO_BATCHES)


@pytest.mark.parametrize("on_spike", ["log", "skip"])
def test_a_spike_is_told_of_and_skipped_if_asked(tiny, spoil, tmp_path: Path, on_spike: str):
    spoil(lambda step, _: 3.0 if step == 36 else 1.0)
    train(tiny(train={"on_spike": on_spike}), token_budget=40 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    spikes, skips = events_of(tmp_path, "spike"), events_of(tmp_path, "skip")
    assert (len(spikes), len(skips)) == ((1, 0) if on_spike == "log" else (0, 1))
    (event,) = spikes + skips
    losses = [step["loss"] for step in events_of(tmp_path, "step")]
    assert event["step"] == 37 and event["loss"] > 2 * losses[35]
    assert (max(losses) == event["loss"]) == (on_spike == "log")
    assert progress(tmp_path)["skipped"] == len(skips)
    if on_spike == "log":
        assert max(losses[:36]) < event["threshold"] < event["loss"]
    else:
        assert event["reason"] == "spike" and event["grad_norm"] is None


def test_a_rollback_resumes_the_newest_snapshot_with_other_text(tiny, spoil, tmp_path: Path, capsys):
    train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    train(tiny(), token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    spoil(lambda step, _: math.nan if 3 <= step < 6 else 1.0)
    preset = tiny(train={"max_skipped_steps": 3, "on_divergence": "rollback"})
    result = train(preset, token_budget=12 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert result.tokens == 12 * TOKENS_PER_STEP
    (rollback,) = events_of(tmp_path, "rollback")
    assert (rollback["step"], rollback["to_step"]) == (9, 6)
    assert rollback["reason"] == "3 steps in a row were skipped, the last for a non-finite loss"
    steps = [step["step"] for step in events_of(tmp_path, "step")]
    assert steps == [*range(1, 10), *range(7, 13)]
    saved = progress(tmp_path)
    assert (saved["step"], saved["tokens_total"], saved["skipped"]) == (12, 12 * TOKENS_PER_STEP, 3)
    assert data_state(tmp_path)["loader"]["batch"] == 6 + 3 + 3 + 6, "no batch is read twice"
    assert progress(tmp_path, PREV)["step"] == 6
    printed = " ".join(capsys.readouterr().out.split())
    assert "training continues from step 6 with text that it has not read yet" in printed


def test_each_rollback_goes_further_back_and_the_fourth_stops(tiny, spoil, tmp_path: Path):
    for steps in (2, 4, 6):
        train(tiny(), token_budget=steps * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    oldest = (tmp_path / "lm_prev2.pth").read_bytes()
    spoil(lambda step, _: math.nan)
    preset = tiny(train={"max_skipped_steps": 2, "on_divergence": "rollback"})
    with pytest.raises(Diverged, match="after step 2") as caught:
        train(preset, token_budget=20 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert caught.value.status == 1 and "rollback" not in str(caught.value)
    assert [rollback["to_step"] for rollback in events_of(tmp_path, "rollback")] == [6, 4, 2]
    assert [skip["total"] for skip in events_of(tmp_path, "skip")] == list(range(1, 9))
    assert (tmp_path / CURRENT).read_bytes() == oldest


def test_a_new_snapshot_makes_the_next_rollback_a_first_one(tiny, spoil, tmp_path: Path):
    spoil(lambda step, _: math.nan if step in (2, 3, 5, 6) else 1.0)
    preset = tiny(train={"max_skipped_steps": 2, "on_divergence": "rollback", "save_interval_minutes": 1e-9})
    train(preset, token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert [rollback["to_step"] for rollback in events_of(tmp_path, "rollback")] == [2, 3]
    assert not list(tmp_path.glob("rolled_back*"))


def test_a_run_without_a_snapshot_rolls_back_to_its_beginning(tiny, spoil, tmp_path: Path):
    spoil(lambda step, _: math.nan if step in (2, 3) else 1.0)
    train(
        tiny(train={"max_skipped_steps": 2, "on_divergence": "rollback"}),
        token_budget=3 * TOKENS_PER_STEP,
        checkpoint_dir=tmp_path,
    )
    assert [rollback["to_step"] for rollback in events_of(tmp_path, "rollback")] == [0]
    assert progress(tmp_path)["step"] == 3
    assert data_state(tmp_path)["loader"]["batch"] == 7


@pytest.mark.parametrize("on_divergence", ["stop", "rollback"])
@pytest.mark.parametrize(
    ("last_step", "what"), [(4, "The validation loss is not finite"), (20, "The weights are not finite")]
)
def test_weights_that_are_not_finite_never_become_a_snapshot(
    tiny, tmp_path: Path, monkeypatch, on_divergence: str, last_step: int, what: str
):
    """After the run's last step an evaluation meets them, in its middle a save does."""
    train(tiny(), token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    before = (tmp_path / CURRENT).read_bytes()
    real, calls = torch.optim.AdamW.step, itertools.count()

    def step(self: torch.optim.AdamW) -> None:
        real(self)
        if self.param_groups[0]["lr"] > 0 and next(calls) == 1:  # not the warm-up's
            self.param_groups[0]["params"][0].data[0, 0] = math.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    later = 10.0 if last_step == 4 else 1e-9
    train_section = {"on_divergence": on_divergence, "zero_stage": 0, "save_interval_minutes": later}
    if on_divergence == "stop":
        with pytest.raises(Diverged, match=f"{what}, after step 4") as caught:
            train(tiny(train=train_section), token_budget=last_step * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
        assert caught.value.status == 1
    else:
        result = train(tiny(train=train_section), token_budget=last_step * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
        assert result.tokens == last_step * TOKENS_PER_STEP
        (rollback,) = events_of(tmp_path, "rollback")
        assert rollback["reason"] == what and rollback["to_step"] == (2 if last_step == 4 else 3)
    if last_step == 4:
        assert (tmp_path / (CURRENT if on_divergence == "stop" else PREV)).read_bytes() == before
    for path in tmp_path.glob("*.pth"):
        assert all_finite(torch.load(path, weights_only=True)["model"].values())


def by_content(_step: int, input_ids: torch.Tensor) -> float:
    """A passage is bad by what it says, so a restart meets the same."""
    number = hashlib.sha256(input_ids.numpy().tobytes()).digest()[0]
    return math.nan if number < 12 else 3.0 if number < 24 else 1.0


def test_interrupted_among_bad_steps_comes_to_the_same_bits(tiny, spoil, tmp_path: Path):
    spoil(by_content)
    preset = tiny(model={"dropout": 0.2}, train={"on_spike": "skip", "deterministic": True})
    undisturbed, parts = tmp_path / "undisturbed", tmp_path / "parts"
    train(preset, token_budget=60 * TOKENS_PER_STEP, checkpoint_dir=undisturbed)
    for steps in (20, 21):
        signal_after(parts, steps)
        with pytest.raises(Interrupted):
            train(preset, token_budget=60 * TOKENS_PER_STEP, checkpoint_dir=parts)
    train(preset, token_budget=60 * TOKENS_PER_STEP, checkpoint_dir=parts)

    def values(folder: Path, event: str, *keys: str) -> list[tuple]:
        return [tuple(line[key] for key in keys) for line in events_of(folder, event)]

    skips = values(undisturbed, "skip", "step", "reason", "loss", "in_a_row", "total")
    assert {reason for _, reason, *_ in skips} == {"non-finite loss", "spike"}, "both kinds must have been met"
    assert values(parts, "skip", "step", "reason", "loss", "in_a_row", "total") == skips
    assert values(parts, "step", "step", "loss") == values(undisturbed, "step", "step", "loss")
    (model, optimizer, data), theirs = whole(parts), whole(undisturbed)
    assert equal((model, optimizer), theirs[:2])
    assert data["guard"] == theirs[2]["guard"] and len(data["guard"]["losses"]) >= 60
    assert data["loader"] == theirs[2]["loader"]


def test_without_dropout_no_random_number_is_touched(tiny, tmp_path: Path):
    train(tiny(train={"seed": 77}), token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert torch.initial_seed() == 77, "the seed of the initial weights was the last one"


def test_deterministic_kernels_are_asked_for_in_the_run_alone(tiny, spoil, tmp_path: Path, monkeypatch):
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    seen = []
    spoil(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()) or 1.0)
    for asked in (True, False):
        train(tiny(train={"deterministic": asked}), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path / str(asked))
        assert seen == [asked] * MICRO_BATCHES and not torch.are_deterministic_algorithms_enabled()
        seen.clear()


def on_two(preset: Preset, folder: Path, bad: list[int]) -> list[dict[str, Any]]:
    """What each of two ranks says of a run in which steps are bad on the second one."""
    output = folder.with_name("ranks.json")
    arguments = [preset.model_dump_json(by_alias=True), str(folder), json.dumps(bad), str(output)]
    run_ranks(Path(divergence.__file__), *arguments, processes=2, timeout=120)
    return json.loads(output.read_text())


def test_ranks_skip_and_roll_back_together_when_one_is_bad(tiny, tmp_path: Path):
    train_section = {"per_gpu_batch_size": 4, "max_skipped_steps": 2, "on_divergence": "rollback"}
    train_section |= {"zero_stage": 2, "save_interval_minutes": 1e-9}
    preset = tiny(model={"dropout": 0.1}, train=train_section, auxiliary={"enable_adaptive_sources": True})
    ranks = on_two(preset, tmp_path / "run", [1, 4, 5])
    assert [rank["ended"] for rank in ranks] == [0, 0]
    skips = [(skip["step"], skip["in_a_row"]) for skip in events_of(tmp_path / "run", "skip")]
    assert skips == [(2, 1), (4, 1), (4, 2)]
    assert [rollback["to_step"] for rollback in events_of(tmp_path / "run", "rollback")] == [3]
    assert progress(tmp_path / "run")["step"] == 12
    assert not set(ranks[0]["seeds"]) & set(ranks[1]["seeds"]), "dropout differs between ranks"
    for rank in ranks:
        assert len(set(rank["seeds"])) == len(rank["seeds"]) / MICRO_BATCHES, "and between batches, also skipped ones"
    adaptive = data_state(tmp_path / "run")["adaptive"]
    assert adaptive["sums"]["topics"][1] == adaptive["tokens"], "what is loaded on every rank is counted once"


def test_ranks_stop_together_when_one_stays_bad(tiny, tmp_path: Path):
    preset = tiny(train={"per_gpu_batch_size": 4, "max_skipped_steps": 2})
    ranks = on_two(preset, tmp_path / "run", list(range(3, 20)))
    assert ranks[0]["ended"] == ranks[1]["ended"]
    status, sentence = ranks[0]["ended"]
    assert status == 1 and "2 steps in a row were skipped" in sentence and "after step 3" in sentence
    assert progress(tmp_path / "run")["step"] == 0, "what was saved before the first step"
