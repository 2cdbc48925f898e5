"""engine/device/microbatch.py: which micro-batch size is chosen."""

from pathlib import Path

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CheckpointFolder
from engine.config import Preset
from engine.control.signals import SignalWatch
from engine.device import microbatch
from engine.device.microbatch import MicroBatchProbe, choose_shape
from engine.device.ranks import Agreement, Ranks
from engine.errors import Interrupted, PresetError
from engine.events import EventLog, read
from engine.screen.console import Console
from model.transformer import TransformerLM
from sources.loading.loader import BatchShape
from tests.helpers.training import TOKENS_PER_STEP

PARTS = {f"enable_{part}": True for part in ("policy", "value", "dynamics", "span_contrastive")}
ALONE = Ranks(0, 1, torch.device("cpu"), None)
SILENT = EventLog(Path(), Console(enabled=False), enabled=False)


def model_of(preset: Preset) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(preset.model, 512, preset.auxiliary)


def choose_rows(
    preset: Preset, model: TransformerLM, saved: int | None = None, continues: bool = True, log: EventLog = SILENT
) -> int:
    train = preset.train
    shape = BatchShape(train.per_gpu_batch_size, train.accumulation_steps, preset.model.seq_length)
    probe = MicroBatchProbe(model, shape, ALONE, False, preset.data.document_mask)
    chosen = choose_shape(probe, saved, continues, train.deterministic, log)
    assert chosen.rows_per_step == shape.rows_per_step
    return chosen.micro_batch_size


Seconds = dict[int, float | None]  # of a row, by the size of its micro-batch; None: it does not fit


def choose(monkeypatch, preset: Preset, seconds: Seconds, saved: int | None = None, **options) -> tuple[int, list[int]]:
    """What is chosen where a row takes `seconds`, and the sizes that were tried, in this order."""
    tried: list[int] = []

    def timed(self, rows: int) -> float:
        if rows not in tried:
            tried.append(rows)
        if (each := seconds[rows]) is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows * each

    monkeypatch.setattr(MicroBatchProbe, "_timed", timed)
    monkeypatch.setattr(MicroBatchProbe, "_has_room", lambda self, rows: True)
    return choose_rows(preset, model_of(preset), saved, **options), tried


def test_a_cpu_gets_the_largest_of_the_fastest_sizes(tiny, monkeypatch):
    every = [1, 2, 4, 8, 16]
    assert choose(monkeypatch, tiny(), {1: 0.020, 2: 0.015, 4: 0.012, 8: 0.011, 16: 0.010}) == (16, every)
    assert choose(monkeypatch, tiny(), {1: 0.010, 2: 0.0102, 4: 0.0095, 8: 0.0098, 16: 0.012}) == (8, every)
    # a micro-batch that takes two seconds is long enough
    assert choose(monkeypatch, tiny(), {1: 1.0, 2: 0.9, 4: 0.8}) == (4, [1, 2, 4])
    assert choose(monkeypatch, tiny(), {1: 9.0}) == (1, [1])


@pytest.mark.parametrize("busy", [range(3, 10), range(0, 8), range(12, 60), [9, 14, 19]])
def test_other_work_that_comes_and_goes_chooses_nothing(tiny, monkeypatch, busy):
    """A row takes three times as long in some of the trials: as it was when a run of a busy machine got 1 row."""
    trials = []

    def timed(self, rows: int) -> float:
        trials.append(rows)
        return rows * 0.01 * (3 if len(trials) in busy else 1)

    monkeypatch.setattr(MicroBatchProbe, "_timed", timed)
    monkeypatch.setattr(MicroBatchProbe, "_has_room", lambda self, rows: True)
    assert choose_rows(tiny(), model_of(tiny())) == 16
    assert trials[:10] == [1, 2, 4, 8, 16, 1, 2, 4, 8, 16], "in turns"


def test_a_gpu_gets_the_smallest_of_the_fastest_sizes(tiny, monkeypatch):
    made = MicroBatchProbe.__init__

    def on_a_gpu(self, *arguments) -> None:
        made(self, *arguments)
        self.device = torch.device("meta")  # whatever is no CPU; nothing is measured here

    monkeypatch.setattr(MicroBatchProbe, "__init__", on_a_gpu)
    assert choose(monkeypatch, tiny(), {1: 0.020, 2: 0.015, 4: 0.0102, 8: 0.0101, 16: 0.010})[0] == 4


def test_sizes_have_rows_enough_for_rollouts(tiny, monkeypatch):
    looking = tiny(auxiliary={"enable_policy": True})  # an eighth of the rows is rolled out
    assert choose(monkeypatch, looking, {8: 0.02, 16: 0.01}) == (16, [8, 16])
    # but smaller ones are better than none
    assert choose(monkeypatch, looking, {8: None, 4: None, 2: 0.1}) == (2, [8, 4, 2])


def test_sizes_grow_until_memory_ends(tiny, monkeypatch):
    assert choose(monkeypatch, tiny(), {1: 0.2, 2: 0.1, 4: None}) == (2, [1, 2, 4])


def test_sizes_stay_within_what_a_preset_may_say():
    assert microbatch._sizes(BatchShape(4, 6, 32)) == [1, 2, 3, 4, 6, 8, 12, 24]
    largest = microbatch._sizes(BatchShape(2**30, 2**30, 32))  # found at once, though 2**60 rows are a step
    assert largest == [2**30]
    assert microbatch._sizes(BatchShape(2**30, 8, 32)) == [2**power for power in range(3, 31)]


def test_not_even_one_row_fits(tiny, monkeypatch):
    with pytest.raises(PresetError, match="One row of 32 tokens does not fit into the memory"):
        choose(monkeypatch, tiny(), {1: None})


def test_a_run_keeps_its_size_while_it_fits(tiny, monkeypatch):
    assert choose(monkeypatch, tiny(), {2: 9.0}, saved=2) == (2, [2])
    assert choose(monkeypatch, tiny(), {1: 0.1, 2: None}, saved=2) == (1, [2, 1])
    # 16 rows a step cannot be had in micro-batches of 3
    assert choose(monkeypatch, tiny(), {1: 3.0}, saved=3) == (1, [1])


def test_the_next_run_of_a_lineage_measures_again(tiny, monkeypatch):
    alike = dict.fromkeys([1, 2, 4, 8, 16], 0.01)
    assert choose(monkeypatch, tiny(), alike, saved=1, continues=False)[0] == 16
    assert choose(monkeypatch, tiny(train={"deterministic": True}), alike, saved=1, continues=False) == (1, [1])


@pytest.mark.parametrize(
    ("saved", "seconds", "better"),
    [
        (1, {1: 0.01, 8: 0.01}, 8),
        (1, {1: 0.01, 8: 0.013}, None),  # no fifth may be lost
        (1, {1: 0.2, 4: 0.2}, 4),  # more would take over a second
        (1, {1: 0.3}, None),
        (4, {4: 0.01}, None),  # not so few
        (1, {1: 0.01, 8: None}, None),
    ],
)
def test_a_run_that_keeps_very_few_rows_is_told(tiny, tmp_path: Path, monkeypatch, saved, seconds, better):
    log = EventLog(tmp_path, Console(enabled=False))
    assert choose(monkeypatch, tiny(), seconds, saved=saved, log=log) == (saved, list(seconds))
    advice = [event for event in read(tmp_path) if event["event"] == "advice"]
    assert len(advice) == (better is not None)
    if advice:
        assert advice[0]["topic"] == "micro-batch" and f"it would get {better} or more" in advice[0]["message"]


def test_the_clock_decides_nothing_in_a_deterministic_run(tiny, monkeypatch):
    preset = tiny(train={"deterministic": True})
    assert choose(monkeypatch, preset, {8: 1.0}) == (8, [8])
    assert choose(monkeypatch, preset, {8: None, 4: 1.0}) == (4, [8, 4])


@pytest.mark.parametrize("auxiliary", [{}, PARTS | {"value_horizons": [4]}])
def test_real_micro_batches_leave_no_gradient(tiny, auxiliary: dict):
    preset = tiny(auxiliary=auxiliary)
    model = model_of(preset)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = choose_rows(preset, model)
    assert 16 % rows == 0 and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_memory_that_is_not_there_is_not_asked_for(tiny, monkeypatch):
    monkeypatch.setattr(
        microbatch.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0, "total": 2**30})
    )
    with pytest.raises(PresetError, match="One row of 32 tokens does not fit into the memory"):
        choose_rows(tiny(), model_of(tiny()))


@pytest.mark.parametrize("saved", [None, 16])
def test_sizes_grow_to_what_is_asked_while_memory_lasts(tiny, monkeypatch, saved: int | None):
    """Where the first to be tried are many rows: no allocation would fail, the process would be killed."""
    preset, passed = tiny(train={"deterministic": True, "per_gpu_batch_size": 16, "accumulation_steps": 1}), []
    model, begin = model_of(preset), microbatch.psutil.Process().memory_info().rss
    monkeypatch.setattr(MicroBatchProbe, "_timed", lambda self, rows: passed.append(rows) or 1.0)
    monkeypatch.setattr(microbatch.machine, "peak_memory", lambda: begin + 2**30 + 2**30 * max(passed, default=0))
    held_back = microbatch.OPTIMIZER_BYTES * model.num_parameters()
    monkeypatch.setattr(microbatch.host, "available_memory_each", lambda: held_back + 11 * 2**30)
    assert choose_rows(preset, model, saved) == 8
    assert max(passed) == 8


def test_a_gpu_that_is_full_is_one_more_row_too_many(tiny, monkeypatch):
    def full(self, rows: int) -> float:
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.1

    monkeypatch.setattr(MicroBatchProbe, "_timed", full)
    assert choose_rows(tiny(), model_of(tiny())) == 2


def test_a_probed_run_keeps_its_step(tiny, tmp_path: Path, monkeypatch):
    take_best(monkeypatch, 4)
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    train(tiny(), token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=plain)
    train(tiny(train={"probe_batch": True}), token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=probed)
    events = [[event for event in read(folder) if event["event"] == "step"] for folder in (plain, probed)]
    assert [event["tokens"] for event in events[1]] == [event["tokens"] for event in events[0]]
    assert [event["loss"] for event in events[1]] == pytest.approx([event["loss"] for event in events[0]], abs=2e-5)
    (run,) = (event for event in read(probed) if event["event"] == "run")
    assert run["derived"]["rows_per_pass"] == 4 and run["derived"]["global_batch_tokens"] == TOKENS_PER_STEP
    assert CheckpointFolder(probed).newest().data["rows_of_pass"] == 4


def test_a_resumed_run_keeps_its_size_and_the_next_has_its_own(tiny, tmp_path: Path, monkeypatch):
    preset, budget = tiny(train={"probe_batch": True}), 4 * TOKENS_PER_STEP
    take_best(monkeypatch, 4)
    with monkeypatch.context() as stopping, pytest.raises(Interrupted):
        stopping.setattr(SignalWatch, "agreement", lambda self: Agreement(terminate=self.process.position is not None))
        train(preset, token_budget=budget, checkpoint_dir=tmp_path)
    take_best(monkeypatch, 8)
    assert CheckpointFolder(tmp_path).newest().snapshot.progress["step"] == 1
    train(preset, token_budget=budget, checkpoint_dir=tmp_path)
    assert rows_of_runs(tmp_path) == [4, 4]
    # Killed before its first step, the second run has its size already, and the optimizer's state with it.
    with monkeypatch.context() as killing, pytest.raises(KeyboardInterrupt):
        killing.setattr("engine.run.trainer.Trainer._next_batch", raises_interrupt)
        train(preset, token_budget=budget, checkpoint_dir=tmp_path)
    take_best(monkeypatch, 2)
    newest = CheckpointFolder(tmp_path).newest()
    assert newest.data["rows_of_pass"] == 8 and newest.snapshot.progress["run"] == 2
    moments = newest.optimizer["moments"].values()
    assert all(tensor.abs().sum() > 0 for tensors in moments for tensor in tensors.values() if tensor.dim() > 1)
    train(preset, token_budget=budget, checkpoint_dir=tmp_path)
    assert rows_of_runs(tmp_path) == [4, 4, 8, 8]


def take_best(monkeypatch, best: int) -> None:
    """Let micro-batches of `best` rows be the fastest."""
    monkeypatch.setattr(MicroBatchProbe, "_timed", lambda self, rows: rows * 0.01 * (abs(rows - best) + 1))


def raises_interrupt(*arguments) -> None:
    raise KeyboardInterrupt


def rows_of_runs(folder: Path) -> list[int]:
    return [event["derived"]["rows_per_pass"] for event in read(folder) if event["event"] == "run"]


def test_a_lineage_without_a_step_keeps_its_size(tiny, tmp_path: Path, monkeypatch, capsys):
    preset = tiny(train={"probe_batch": True})
    with monkeypatch.context() as stopping:
        stopping.setattr("engine.run.trainer.warm_up", raises_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(preset, token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    rows = CheckpointFolder(tmp_path).newest().data["rows_of_pass"]
    capsys.readouterr()
    train(preset, token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Micro-batch size {rows}, " in printed and "as before" in printed and "another version" not in printed
