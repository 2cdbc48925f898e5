"""Whole runs through the real DeepSpeed engine, one process; test_processes.py has the others."""

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CURRENT, MIRROR, PREV
from engine.errors import Interrupted, PresetError, SourcesFailed
from engine.run.evaluation import Evaluator
from model import TransformerLM, load
from sources.held_out import collect_validation_set
from sources.registry import open_sources
from sources.rows.tokenizer import TextTokenizer
from tests.helpers.folders import events_of, progress
from tests.helpers.look_ahead import PARTS
from tests.helpers.processes import environment
from tests.helpers.text import REPOSITORY
from tests.helpers.training import TOKENS_PER_STEP, after_steps, obstruct, signal_after


def test_a_run_meets_its_budget_and_leaves_what_it_promises(tiny, tmp_path: Path):
    preset = tiny(train={"train_tokens": 999})
    result = train(preset, token_budget=20 * TOKENS_PER_STEP - 5, checkpoint_dir=tmp_path)

    assert result.tokens == 20 * TOKENS_PER_STEP
    assert result.tokens_per_second > 0
    assert result.eval_perplexity == pytest.approx(math.exp(result.eval_loss))
    assert 0 < result.bits_per_byte < 8
    assert result.snapshot == tmp_path / CURRENT
    saved = torch.load(result.snapshot, weights_only=True)
    assert saved["progress"]["tokens_in_run"] == saved["progress"]["tokens_total"] == 20 * TOKENS_PER_STEP
    assert saved["progress"]["evaluation"]["ce"] == result.eval_loss
    assert (tmp_path / MIRROR).read_bytes() == result.snapshot.read_bytes()

    (first,), steps = events_of(tmp_path, "run"), events_of(tmp_path, "step")
    assert first["derived"]["token_budget"] == 20 * TOKENS_PER_STEP - 5
    assert sum(event["steps"] for event in steps) == 20 and steps[-1]["tokens"] == 20 * TOKENS_PER_STEP
    assert set(steps[0]["sources"]) == {"topics"}
    assert steps[0]["loss"] == pytest.approx(math.log(512), abs=0.3)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3
    evaluations = events_of(tmp_path, "evaluation")
    assert [event["step"] for event in evaluations] == [8, 16, 20]
    assert all(event["perplexity"] == pytest.approx(math.exp(event["ce"])) for event in evaluations)
    assert evaluations[-1]["sample"]["text"]
    assert [event["step"] for event in events_of(tmp_path, "save")] == [0, 20]


def test_the_evaluation_is_the_held_out_texts_own_loss(tiny, tmp_path: Path):
    preset = tiny()
    result = train(preset, token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    lm = load(result.snapshot)
    tokenizer = TextTokenizer.from_json(torch.load(result.snapshot, weights_only=True)["tokenizer"], lm.eos_token_id)
    held_out = collect_validation_set(
        open_sources(preset.data).sources, preset.data, tokenizer, seq_length=32, eval_tokens=preset.train.eval_tokens
    )
    assert held_out.texts["topics"]
    logits = lm.model.logits(lm.model.hidden_states(held_out.input_ids))
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), held_out.labels.flatten(), reduction="sum")
    tokens = sum(len(tokenizer.encode_batch([text])[0]) + 1 for text in held_out.texts["topics"])
    assert result.eval_loss == pytest.approx(losses.item() / tokens, rel=1e-5)
    text_bytes = sum(len(text.encode()) for text in held_out.texts["topics"])
    assert result.bits_per_byte == pytest.approx(losses.item() / math.log(2) / text_bytes, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("auxiliary", "precision", "apart"),
    [
        ({}, "fp32", 1e-3),
        (PARTS, "bf16", 0.02),
        ({"enable_curriculum": True}, "fp32", 1e-3),
    ],
)
def test_compiled_trains_what_uncompiled_does(tiny, tmp_path: Path, auxiliary: dict, precision: str, apart: float):
    if auxiliary.get("enable_curriculum"):
        auxiliary |= {"curriculum_burn_in_tokens": 0, "curriculum_interval_tokens": TOKENS_PER_STEP}
    steps = []
    for compiled in (False, True):
        preset = tiny(auxiliary=auxiliary, train={"compile": compiled, "precision": precision})
        train(preset, token_budget=10 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / str(compiled))
        assert events_of(tmp_path / str(compiled), "run")[0]["derived"]["compiled"] is compiled
        steps.append(events_of(tmp_path / str(compiled), "step"))
    assert len(steps[0]) == len(steps[1]) == 10
    for plain, compiled in zip(*steps, strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], abs=apart)
        assert compiled["auxiliary"] == pytest.approx(plain["auxiliary"], rel=0.1, abs=0.02)


def test_the_snapshot_writes_text_where_only_model_is_imported(tiny, tmp_path: Path):
    result = train(tiny(), token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    script = f"""
import sys
from model import TransformerLM, load
lm = load({str(result.snapshot)!r})
text = lm.generate("The", max_new_tokens=20, top_p=0.9, seed=0)
assert isinstance(text, str) and text
assert "".join(lm.stream("The", max_new_tokens=20, top_p=0.9, seed=0)) == text
assert 0 < lm.score("The with statement").mean_nll < 10
assert not {{"engine", "sources", "deepspeed", "datasets", "transformers"}} & set(sys.modules)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr


def test_a_finished_run_is_followed_by_the_next(tiny, tmp_path: Path):
    first = train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    second = train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert first.tokens == second.tokens == 4 * TOKENS_PER_STEP
    saved = progress(tmp_path)
    assert (saved["run"], saved["step"], saved["tokens_in_run"], saved["tokens_total"]) == (
        2,
        8,
        4 * TOKENS_PER_STEP,
        8 * TOKENS_PER_STEP,
    )
    assert progress(tmp_path, PREV)["run"] == 1
    resumed = [event["message"] for event in events_of(tmp_path, "resume")]
    assert len(resumed) == 1 and "with its optimizer and data position" in resumed[0]


def test_an_interrupted_last_evaluation_is_left_to_a_restart(tiny, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        calls = itertools.count()

        def signalled(*arguments):
            if next(calls) == 1:  # the first is the warm-up's
                os.kill(os.getpid(), 15)
            return evaluate(*arguments)

        evaluate = Evaluator.evaluate
        patch.setattr(Evaluator, "evaluate", signalled)
        preset = tiny(train={"eval_interval_tokens": 10**9})
        with pytest.raises(Interrupted, match="SIGTERM at step 4") as caught:
            train(preset, token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert caught.value.status == 143
    saved = progress(tmp_path)
    assert saved["tokens_in_run"] == 4 * TOKENS_PER_STEP and saved["evaluation"] is None and not saved["finished"]

    result = train(preset, token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert result.eval_loss is not None and result.tokens == 4 * TOKENS_PER_STEP
    saved = progress(tmp_path)
    assert (saved["run"], saved["step"], saved["finished"]) == (1, 4, True) and saved["evaluation"]["ce"]
    assert sum(event["steps"] for event in events_of(tmp_path, "step")) == 4
    train(preset, token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert progress(tmp_path)["run"] == 2


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_interrupted_twice_equals_uninterrupted_to_the_bit(tiny, tmp_path: Path, compiled: bool):
    preset = tiny(train={"compile": compiled})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(preset, token_budget=24 * TOKENS_PER_STEP, checkpoint_dir=whole)
    for steps in (3, 5):
        signal_after(parts, steps)
        with pytest.raises(Interrupted, match="the next start continues from there") as caught:
            train(preset, token_budget=24 * TOKENS_PER_STEP, checkpoint_dir=parts)
        assert caught.value.status == 143
    train(preset, token_budget=24 * TOKENS_PER_STEP, checkpoint_dir=parts)

    ours, theirs = (torch.load(folder / CURRENT, weights_only=True) for folder in (parts, whole))
    assert ours["progress"]["step"] == theirs["progress"]["step"] == 24
    assert all(torch.equal(ours["model"][name], tensor) for name, tensor in theirs["model"].items())
    assert ours["progress"]["evaluation"] == theirs["progress"]["evaluation"]


def test_stages_continue_one_another(tiny, tmp_path: Path):
    for number, stage in enumerate((1, 0, 3, 2, 1)):
        preset = tiny(train={"zero_stage": stage})
        train(preset, token_budget=2 * (number + 1) * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    sizes = {event["derived"]["parameters"] for event in events_of(tmp_path, "run")}
    size = load(tmp_path / CURRENT).model.num_parameters()
    assert sizes == {size}, "the size is the model's, also where it is partitioned"
    losses = [event["loss"] for event in events_of(tmp_path, "step")]
    saved = progress(tmp_path)
    assert saved["run"] == 1 and saved["step"] == 10
    assert all(after < before + 0.1 for before, after in itertools.pairwise(losses)), losses


def test_a_preset_without_biases_continues_a_model_with_them(tiny, tmp_path: Path):
    """The presets have had biases: their lineages go on as they are."""
    runs = {}
    for name, later in (("same", True), ("changed", False)):
        folder = tmp_path / name
        train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=folder)
        result = train(tiny(model={"bias": later}), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=folder)
        runs[name] = torch.load(result.snapshot, weights_only=True)
    (message,) = [event["message"] for event in events_of(tmp_path / "changed", "resume")]
    assert "with its optimizer and data position" in message and "biases, which it keeps" in message
    assert runs["changed"]["config"] == runs["same"]["config"] and runs["changed"]["config"]["bias"]
    assert runs["changed"]["model"].keys() == runs["same"]["model"].keys()
    assert all(torch.equal(runs["changed"]["model"][name], rows) for name, rows in runs["same"]["model"].items())


def test_longer_rows_extend_the_positions_and_keep_the_weights(tiny, tmp_path: Path):
    train(tiny(), token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    longer = tiny(model={"seq_length": 64}, train={"per_gpu_batch_size": 4})
    train(longer, token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert torch.load(tmp_path / CURRENT, weights_only=True)["config"]["seq_length"] == 64
    train(tiny(), token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert torch.load(tmp_path / CURRENT, weights_only=True)["config"]["seq_length"] == 64


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model": {"hidden_size": 64}}, "hidden_size 32 in the checkpoint, 64 in the preset"),
        ({"model": {"num_heads": 4}}, "num_heads 2 in the checkpoint, 4 in the preset"),
        ({"data": {"tokenizer": {"train_bpe": 600}}}, "tokenizer {'train_bpe': 512} in the checkpoint"),
    ],
)
def test_another_architecture_or_tokenizer_is_never_overwritten(tiny, tmp_path: Path, changes, difference):
    train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    before = (tmp_path / CURRENT).read_bytes()
    other = tiny(**{**changes, "data": {"tokenizer": {"train_bpe": 512}, **changes.get("data", {})}})
    other = other.model_copy(update={"data": other.data.model_copy(update={"sources": tiny().data.sources})})
    with pytest.raises(PresetError, match="does not fit this preset") as caught:
        train(other, token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert difference in str(caught.value) and caught.value.status == 2
    assert (tmp_path / CURRENT).read_bytes() == before

    asked = []
    train(
        other,
        token_budget=TOKENS_PER_STEP,
        checkpoint_dir=tmp_path,
        may_archive=lambda sentence: asked.append(sentence) or True,
    )
    assert difference in asked[0]
    (archived,) = (tmp_path / "archive").iterdir()
    assert (archived / CURRENT).read_bytes() == before
    assert len(events_of(tmp_path, "run")) == 1, "the new lineage has metrics of its own"


def test_sources_that_all_fail_halt_the_run_by_name(tiny, tmp_path: Path):
    missing = {"sources": [{"type": "files", "path": str(tmp_path / "nowhere")}, {"type": "pdf", "path": "./no_pdfs"}]}
    with pytest.raises(SourcesFailed) as caught:
        train(
            tiny(data={**missing, "tokenizer": {"train_bpe": 512}}),
            token_budget=TOKENS_PER_STEP,
            checkpoint_dir=tmp_path / "c",
        )
    assert caught.value.status == 3
    assert "nowhere" in str(caught.value) and "no_pdfs" in str(caught.value)


def test_one_failing_source_is_dropped_and_training_goes_on(tiny, topics_folder: Path, tmp_path: Path):
    sources = [{"type": "pdf", "path": "./no_pdfs"}, {"type": "files", "path": str(topics_folder), "glob": "*.txt"}]
    result = train(
        tiny(data={"sources": sources, "tokenizer": {"train_bpe": 512}}),
        token_budget=TOKENS_PER_STEP,
        checkpoint_dir=tmp_path,
    )
    assert result.tokens == TOKENS_PER_STEP


def test_a_batch_that_cannot_fit_says_what_to_lower(tiny, tmp_path: Path):
    huge = tiny(train={"per_gpu_batch_size": 2**30})
    with pytest.raises(PresetError, match=r"lower it to (\d+) and train.accumulation_steps to (\d+)") as caught:
        train(huge, token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    rows, steps = map(int, re.findall(r" to (\d+)", str(caught.value)))
    assert rows * steps == 2**31 and rows < 2**30 and caught.value.status == 2


def test_a_position_of_another_version_is_said_to_be_lost(tiny, tmp_path: Path, monkeypatch, capsys):
    train(tiny(), token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    monkeypatch.setattr("engine.run.resume.is_readable", lambda state: False)  # as after a new version
    train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "with its optimizer and without data position" in printed and "the text starts over" in printed


def test_a_model_that_cannot_fit_is_never_made(tiny, tmp_path: Path):
    for shape in ({"hidden_size": 2**20}, {"seq_length": 2**20}):
        with pytest.raises(PresetError, match=r"One row of \d+ tokens does not fit into the memory of CPU"):
            train(tiny(model=shape), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_bare_state_dict_with_more_positions_keeps_them(tiny, tmp_path: Path, stage: int):
    preset = tiny(train={"zero_stage": stage})
    longer = TransformerLM(preset.model.model_copy(update={"seq_length": 64}), 512)
    torch.save(longer.state_dict(), tmp_path / CURRENT)
    train(preset, token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    lm = load(tmp_path / CURRENT)
    assert lm.model.config.seq_length == len(lm.model.positions.weight) == 64
    far = lm.model.positions.weight[32:], longer.positions.weight[32:]
    assert torch.equal(*far), "rows of 32 never reach them"


def test_a_snapshot_that_cannot_be_written_ends_no_training(tiny, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("engine.checkpoint.background.FINAL_TIMEOUT_SECONDS", 0.0)
    after_steps(tmp_path, 2, lambda: obstruct(tmp_path))
    preset = tiny(train={"save_interval_minutes": 1e-9})
    with pytest.raises(Exception, match="could not be written") as caught:
        train(preset, token_budget=60 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert caught.value.status == 5
    assert events_of(tmp_path, "step")[-1]["step"] >= 60
    assert "Training goes on" in capsys.readouterr().out
