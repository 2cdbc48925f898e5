"""Models with memory tokens through the real engine: whole runs, resumed, on several processes; switched on later."""

from pathlib import Path

import pytest
import torch

from engine import train
from engine.errors import Interrupted, PresetError
from model import load
from model.memory import document_nll
from tests.helpers.folders import events_of
from tests.helpers.training import TOKENS_PER_STEP, by_step, signal_after, train_with

ON = {"memory_tokens": 4}
RECONSTRUCTED = {"memory_reconstruction_weight": 0.1}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "lm_current.pth", weights_only=True)["model"]


# Alone, a process has stage 0 in the place of 1 and 2.
@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_and_continued_has_the_same_bits(tiny, tmp_path: Path, stage: int):
    options = {"optimizer": "muon", "zero_stage": stage, "memory_segments": 4}
    preset = tiny(model=ON | {"positions": "rotary"}, train=options, auxiliary=RECONSTRUCTED)
    budget = 12 * TOKENS_PER_STEP
    train(preset, token_budget=budget, checkpoint_dir=tmp_path / "whole")
    for steps in (1, 5):
        signal_after(tmp_path / "parts", steps)
        with pytest.raises(Interrupted):
            train(preset, token_budget=budget, checkpoint_dir=tmp_path / "parts")
    train(preset, token_budget=budget, checkpoint_dir=tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    steps = events_of(tmp_path / "whole", "step")
    assert steps[-1]["tokens"] <= steps[-1]["step"] * TOKENS_PER_STEP  # a step has as many tokens as without memory
    assert steps[-1]["auxiliary"].keys() == {"memory_reconstruction", "loss_behind_memory"}
    assert steps[-1]["auxiliary"]["memory_reconstruction"] < steps[0]["auxiliary"]["memory_reconstruction"]
    (run,), found = events_of(tmp_path / "whole", "run"), events_of(tmp_path / "whole", "evaluation")[-1]
    assert found["memory"]["tokens"] > 100 and found["memory"]["ce"] != found["memory"]["ce_without"]
    lm = load(tmp_path / "whole" / "lm_current.pth")
    assert run["derived"]["parameters"] == lm.model.num_parameters()
    assert lm.model.memory is not None and lm.model.memory.reconstruction is not None


def test_score_and_text_beyond_the_window_read_the_memory(tiny, tmp_path: Path):
    train(tiny(model=ON), token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    lm = load(tmp_path / "lm_current.pth")
    text = "The assignment statement binds names to values. " * 8
    score = lm.score(text)
    assert len(score.tokens) > 2 * lm.model.config.seq_length
    with pytest.warns(UserWarning, match="what its memory tokens hold"):
        written = lm.generate(text, max_new_tokens=20, temperature=0.0, logprobs=0, echo=True)
    logprobs = [logprob.logprob for logprob in written.logprobs]
    assert logprobs[: len(score.tokens)] == pytest.approx((-score.token_nll).tolist(), abs=1e-3)
    tokens = torch.tensor([lm.eos_token_id, *written.tokens])
    with torch.no_grad():
        assert document_nll(lm.model, tokens).tolist() == pytest.approx([-value for value in logprobs], abs=1e-3)
    with torch.no_grad():
        lm.model.memory.places.weight.zero_()
        lm.model.memory.projection.weight.zero_()
    without, first = lm.score(text).token_nll, lm.model.config.seq_length
    assert torch.equal(without[:first], score.token_nll[:first])
    assert (without[first:] != score.token_nll[first:]).any()
    with pytest.raises(ValueError, match="does not read memory tokens"):
        lm.fit_drafter([text * 20])
    with pytest.raises(ValueError, match="memory_tokens 0"):
        lm.export(tmp_path / "exported")


def test_memory_is_switched_on_later_and_off_again(tiny, tmp_path: Path):
    budget = 4 * TOKENS_PER_STEP
    train(tiny(), token_budget=budget, checkpoint_dir=tmp_path)
    before = weights(tmp_path)
    train(tiny(model=ON), token_budget=budget, checkpoint_dir=tmp_path)
    (resumed,) = events_of(tmp_path, "resume")
    assert "Starting fresh: memory.projection.weight, memory.places.weight" in resumed["message"]
    assert weights(tmp_path).keys() - before.keys() == {"memory.projection.weight", "memory.places.weight"}
    with pytest.raises(PresetError, match="memory_tokens 4 in the checkpoint, 8 in the preset"):
        train(tiny(model={"memory_tokens": 8}), token_budget=budget, checkpoint_dir=tmp_path)
    with pytest.raises(PresetError, match="has 32 positions and the preset a seq_length of 16"):
        train(tiny(model=ON | {"seq_length": 16}), token_budget=budget, checkpoint_dir=tmp_path)
    train(tiny(), token_budget=budget, checkpoint_dir=tmp_path)
    assert weights(tmp_path).keys() == before.keys()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_train_what_one_does_and_continue_each_other(tiny, tmp_path: Path, stage: int):
    def preset(rows: int):
        options = {"zero_stage": stage, "per_gpu_batch_size": rows, "optimizer": "muon"}
        return tiny(model=ON, train=options, auxiliary=RECONSTRUCTED, data={"document_mask": True})

    budget = 8 * TOKENS_PER_STEP
    one = by_step(train_with(1, preset(8), tmp_path / "one", budget))
    two = by_step(train_with(2, preset(4), tmp_path / "two", budget))
    assert list(two.values()) == pytest.approx(list(one.values()), abs=2e-3)
    one = by_step(train_with(1, preset(8), tmp_path / "two", 2 * budget))
    two = by_step(train_with(2, preset(4), tmp_path / "one", 2 * budget))
    assert len(one) == len(two) > 8 and list(two.values()) == pytest.approx(list(one.values()), abs=5e-3)


@pytest.mark.slow
def test_cached_rows_and_worker_processes_give_the_same_run(tiny, tmp_path: Path):
    found = []
    for name, data in {
        "plain": {},
        "cached": {"cache": True, "cache_dir": str(tmp_path / "cache"), "num_workers": 1},
        "again": {"cache": True, "cache_dir": str(tmp_path / "cache")},
    }.items():
        preset = tiny(model=ON, data=data, train={"memory_segments": 4})
        train(preset, token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / name)
        found.append(by_step(events_of(tmp_path / name, "step")))
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_compiled_trains_what_uncompiled_does(tiny, tmp_path: Path):
    found = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        preset = tiny(model=ON, train={"compile": compiled}, auxiliary=RECONSTRUCTED)
        train(preset, token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=folder)
        assert events_of(folder, "run")[0]["derived"]["compiled"] is compiled
        found.append(events_of(folder, "step"))
    for plain, compiled in zip(*found, strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], abs=2e-3)
