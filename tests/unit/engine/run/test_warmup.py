"""engine/rehearsal.py: the passes that a step is divided into, and a step before the first that leaves no trace."""

from pathlib import Path

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CURRENT, CheckpointFolder
from engine.config.preset import Preset
from engine.device import deepspeed_engine
from engine.device.ranks import Ranks, join
from engine.errors import PresetError
from engine.events import read
from engine.run import warmup
from engine.run.step import train_step
from engine.run.warmup import choose_rows, rehearse, same_tokens, with_rows
from engine.screen.console import Console
from model.latent import LookAhead, LookAheadSampler, Trained
from model.transformer import TransformerLM
from sources.loading.loader import Batch
from tests.helpers.training import STEP

PARTS = {f"enable_{part}": True for part in ("policy", "value", "dynamics", "span_contrastive")}
ALONE = Ranks(0, 1, torch.device("cpu"), None)
QUIET = Console(enabled=False)


def model_of(preset: Preset) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(preset.model, 512, preset.auxiliary)


def choose(monkeypatch, preset: Preset, seconds: dict[int, float | None], saved: int | None = None) -> tuple[int, list]:
    """What is chosen where a row takes `seconds` by the rows of a pass (None: does not fit), and what was tried."""
    tried = []

    def measured(self, rows: int) -> float | None:
        tried.append(rows)
        return seconds[rows]

    monkeypatch.setattr(warmup._Trial, "_measure", measured)
    return choose_rows(preset, model_of(preset), False, saved, ALONE, QUIET), tried


def test_the_largest_passes_that_are_about_the_fastest(tiny, monkeypatch):
    every = [1, 2, 4, 8, 16]
    assert choose(monkeypatch, tiny(), {1: 0.020, 2: 0.015, 4: 0.012, 8: 0.011, 16: 0.010}) == (16, every)
    assert choose(monkeypatch, tiny(), {1: 0.010, 2: 0.0102, 4: 0.0095, 8: 0.0098, 16: 0.012}) == (8, every)
    # a pass that takes two seconds is long enough
    assert choose(monkeypatch, tiny(), {1: 1.0, 2: 0.9, 4: 0.8}) == (4, [1, 2, 4])
    assert choose(monkeypatch, tiny(), {1: 9.0}) == (1, [1])


def test_the_smallest_passes_that_are_about_the_fastest_on_a_gpu(tiny, monkeypatch):
    made = warmup._Trial.__init__

    def on_a_gpu(self, *arguments) -> None:
        made(self, *arguments)
        self.is_cpu = False  # nothing is measured here

    monkeypatch.setattr(warmup._Trial, "__init__", on_a_gpu)
    assert choose(monkeypatch, tiny(), {1: 0.020, 2: 0.015, 4: 0.0102, 8: 0.0101, 16: 0.010})[0] == 4


def test_passes_have_rows_enough_to_look_ahead(tiny, monkeypatch):
    looking = tiny(auxiliary={"enable_policy": True})  # an eighth of the rows is rolled out
    assert choose(monkeypatch, looking, {8: 0.02, 16: 0.01}) == (16, [8, 16])
    # but smaller ones are better than none
    assert choose(monkeypatch, looking, {8: None, 4: None, 2: 0.1}) == (2, [8, 4, 2])


def test_passes_end_where_memory_does(tiny, monkeypatch):
    assert choose(monkeypatch, tiny(), {1: 0.2, 2: 0.1, 4: None}) == (2, [1, 2, 4])


def test_not_even_one_row_fits(tiny, monkeypatch):
    with pytest.raises(PresetError, match="One row of 32 tokens does not fit into the memory"):
        choose(monkeypatch, tiny(), {1: None})


def test_a_lineage_keeps_its_passes_while_they_fit(tiny, monkeypatch):
    assert choose(monkeypatch, tiny(), {2: 9.0}, saved=2) == (2, [2])
    assert choose(monkeypatch, tiny(), {1: 0.1, 2: None}, saved=2) == (1, [2, 1, 2])
    # 16 rows a step cannot be had in passes of 3
    assert choose(monkeypatch, tiny(), {1: 3.0}, saved=3) == (1, [1])


def test_the_clock_decides_nothing_in_a_deterministic_run(tiny, monkeypatch):
    preset = tiny(train={"deterministic": True})
    assert choose(monkeypatch, preset, {8: 1.0}) == (8, [8])
    assert choose(monkeypatch, preset, {8: None, 4: 1.0}) == (4, [8, 4])


@pytest.mark.parametrize("auxiliary", [{}, PARTS | {"value_horizons": [4]}])
def test_real_passes_are_timed_and_leave_no_gradient(tiny, auxiliary: dict):
    preset = tiny(auxiliary=auxiliary)
    model = model_of(preset)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = choose_rows(preset, model, False, None, ALONE, QUIET)
    assert 16 % rows == 0 and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_memory_that_is_not_there_is_not_asked_for(tiny, monkeypatch):
    monkeypatch.setattr(warmup.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0, "total": 2**30}))
    with pytest.raises(PresetError, match="One row of 32 tokens does not fit into the memory"):
        choose_rows(tiny(), model_of(tiny()), False, None, ALONE, QUIET)


@pytest.mark.parametrize("saved", [None, 16])
def test_passes_grow_to_what_is_asked_while_memory_lasts(tiny, monkeypatch, saved: int | None):
    """Where the first to be tried are many rows: no allocation would fail, the process would be killed."""
    preset, passed = tiny(train={"deterministic": True, "per_gpu_batch_size": 16, "accumulation_steps": 1}), []
    model, begin = model_of(preset), warmup.psutil.Process().memory_info().rss
    monkeypatch.setattr(warmup._Trial, "_pass", lambda self, rows: passed.append(rows) or 1.0)
    monkeypatch.setattr(warmup.machine, "peak_memory", lambda: begin + 2**30 + 2**30 * max(passed))
    held_back = warmup.OPTIMIZER_BYTES * model.num_parameters()
    monkeypatch.setattr(warmup.machine, "available_memory_each", lambda: held_back + 11 * 2**30)
    assert choose_rows(preset, model, False, saved, ALONE, QUIET) == 8
    assert max(passed) == 8


def test_a_gpu_that_is_full_is_one_more_row_too_many(tiny, monkeypatch):
    def full(self, rows: int) -> float:
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.1 if rows == 2 else 0.2

    monkeypatch.setattr(warmup._Trial, "_pass", full)
    assert choose_rows(tiny(), model_of(tiny()), False, None, ALONE, QUIET) == 2


def test_a_run_keeps_its_step_and_says_how_it_is_divided(tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(warmup._Trial, "_measure", lambda self, rows: 0.01 * (abs(rows - 4) + 1))
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    train(tiny(), token_budget=6 * STEP, checkpoint_dir=plain)
    train(tiny(train={"probe_batch": True}), token_budget=6 * STEP, checkpoint_dir=probed)
    events = [[event for event in read(folder) if event["event"] == "step"] for folder in (plain, probed)]
    assert [event["tokens"] for event in events[1]] == [event["tokens"] for event in events[0]]
    assert [event["loss"] for event in events[1]] == pytest.approx([event["loss"] for event in events[0]], abs=2e-5)
    (run,) = (event for event in read(probed) if event["event"] == "run")
    assert run["derived"]["rows_per_pass"] == 4 and run["derived"]["global_batch_tokens"] == STEP
    assert CheckpointFolder(probed).newest().data["rows_of_pass"] == 4

    monkeypatch.setattr(warmup._Trial, "_measure", lambda self, rows: 0.01 * (abs(rows - 8) + 1))
    train(tiny(train={"probe_batch": True}), token_budget=6 * STEP, checkpoint_dir=probed)
    *_, run = (event for event in read(probed) if event["event"] == "run")
    assert run["derived"]["rows_per_pass"] == 4, "a lineage keeps what it has"


def test_a_lineage_that_was_stopped_before_its_first_step_keeps_its_passes(tiny, tmp_path: Path, monkeypatch, capsys):
    preset = tiny(train={"probe_batch": True})
    with monkeypatch.context() as stopping:
        stopping.setattr("engine.run.trainer.Run._rehearse", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(preset, token_budget=2 * STEP, checkpoint_dir=tmp_path)
    rows = CheckpointFolder(tmp_path).newest().data["rows_of_pass"]
    capsys.readouterr()
    train(preset, token_budget=2 * STEP, checkpoint_dir=tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Passes of {rows} rows" in printed and "as before" in printed and "another version" not in printed


@pytest.mark.parametrize("stage", [1, 3])  # in one process 0 to 2 are one
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_rehearsed_step_leaves_no_trace(tiny, monkeypatch, stage: int, optimizer: str):
    """The steps after it have the bits of those of an engine that did not rehearse."""
    auxiliary = PARTS | {"value_horizons": [4], "auxiliary_warmup_fraction": 0.1}
    preset = tiny(train={"zero_stage": stage, "optimizer": optimizer, "accumulation_steps": 3}, auxiliary=auxiliary)
    ranks = join()
    sampler = LookAheadSampler(preset.auxiliary, preset.model.seq_length, 1)

    def draw(batch: Batch, share: float, number: int = -1) -> list[LookAhead]:
        return [sampler.draw(ids, Trained.alike(share), number) for ids in batch.segment_ids]

    def steps_after(rehearsed: bool) -> dict[str, torch.Tensor]:
        engine = deepspeed_engine.initialize(model_of(preset), preset.train, ranks, bf16=False)

        def step(batch, labels, look_ahead, guard):
            return train_step(engine, batch, labels, 1, 1.0, guard, ranks, look_ahead=look_ahead)

        if rehearsed:
            before = deepspeed_engine.weights(engine, keep=True)
            rehearse(engine, step, preset, 8, lambda batch: draw(batch, 0.0), ranks)
            after = deepspeed_engine.weights(engine, keep=True)
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert deepspeed_engine.optimizer_state(engine, keep=True)["step"] == 0
        deepspeed_engine.set_learning_rate(engine, 1e-2)
        generator = torch.Generator().manual_seed(1)
        for number in range(3):
            batch = same_tokens(preset, 8, 3)
            batch.input_ids.random_(512, generator=generator)
            batch.labels.random_(512, generator=generator)
            step(batch, batch.num_tokens, draw(batch, 1.0, number), warmup.Guard("log", 1))
        weights = deepspeed_engine.weights(engine, keep=True)
        state = deepspeed_engine.optimizer_state(engine, keep=True)
        assert state["step"] == 3
        moments = {f"{name} {key}": moment for name, own in state["moments"].items() for key, moment in own.items()}
        engine.destroy()
        return weights | moments

    plain, rehearsed = steps_after(False), steps_after(True)
    assert plain.keys() == rehearsed.keys()
    assert all(torch.equal(plain[name], rehearsed[name]) for name in plain)


def test_what_does_not_fit_shows_before_anything_is_trained(tiny, tmp_path: Path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.run.trainer.train_step", full)
    with pytest.raises(PresetError, match="per_gpu_batch_size: 8 rows of 32 tokens do not fit"):
        train(tiny(), token_budget=6 * STEP, checkpoint_dir=tmp_path)
    assert torch.load(tmp_path / CURRENT, weights_only=True)["progress"]["step"] == 0
    assert with_rows(tiny(), 2).train.accumulation_steps == 8


def test_a_curriculum_is_rehearsed_as_it_is_before_its_burn_in_and_after(tiny, tmp_path: Path, monkeypatch):
    asked = []
    forward = TransformerLM.forward

    def recorded(self, input_ids, *arguments, **options):
        if self.training:
            asked.append((bool(input_ids.any()), options.get("difficulty") is not None))
        return forward(self, input_ids, *arguments, **options)

    monkeypatch.setattr(TransformerLM, "forward", recorded)
    preset = tiny(auxiliary={"enable_curriculum": True, "curriculum_burn_in_tokens": 10**6})
    train(preset, token_budget=2 * STEP, checkpoint_dir=tmp_path)
    text = [weighs for real, weighs in asked if real]
    rehearsed = [weighs for real, weighs in asked if not real]
    assert set(rehearsed) == {False, True} and set(text) == {False}
