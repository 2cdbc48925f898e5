"""The garbage collector works between steps, never within one, and is as before after a run; what to
lower where a batch does not fit."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from engine import train
from engine.device.memory import freeze_gc, manual_gc, require_memory, too_large
from engine.errors import PresetError
from engine.run.step import StepRunner
from model import TransformerLM
from sources.loading.loader import BatchShape
from tests.helpers.processes import run_program
from tests.helpers.training import TOKENS_PER_STEP


class Ring:
    """What only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_stays_until_it_is_asked_for(enabled: bool):
    gc.enable() if enabled else gc.disable()
    try:
        with manual_gc():
            ring = weakref.ref(Ring())
            [[] for _ in range(100_000)]  # many times what makes Python collect
            assert ring() is not None
            gc.collect()
            assert ring() is None
            kept = weakref.ref(Ring())
            freeze_gc()
            assert kept() is None, "what is garbage by then is not kept"
            [[] for _ in range(1000)]
            assert len(gc.get_objects()) < 5000 < gc.get_freeze_count()
        assert gc.isenabled() == enabled and gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_no_collection_falls_into_a_step_and_each_report_makes_one(tiny, tmp_path: Path, monkeypatch):
    in_step, collections = [False], {True: 0, False: 0}

    def counted(phase: str, info: dict) -> None:
        if phase == "start":
            collections[in_step[0]] += 1

    original = StepRunner.run

    def watched(*arguments, **options):
        in_step[0] = True
        result = original(*arguments, **options)
        in_step[0] = False
        return result

    monkeypatch.setattr(StepRunner, "run", watched)
    gc.callbacks.append(counted)
    try:
        train(tiny(), token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    finally:
        gc.callbacks.remove(counted)
    assert collections[True] == 0 and collections[False] >= 8  # tiny reports every step


@pytest.mark.parametrize(
    ("rows", "passes", "probe", "advice"),
    [
        (8, 2, False, "lower it to 4 and train.accumulation_steps to 4, which keeps the batch"),
        (
            8,
            2,
            True,
            "set train.probe_batch to false and lower it to 4 and train.accumulation_steps to 4, which",
        ),
        (5, 3, False, "lower it to 1 and train.accumulation_steps to 15, which"),
        (9, 1, False, "lower it to 3 and train.accumulation_steps to 3, which"),
        (2**30, 2**30, False, "lower it to 536870912."),  # the schema takes no more accumulation steps
        (2**30 - 35, 1, False, "lower it to 1 and train.accumulation_steps to 1073741789, which"),  # a prime
        (1, 16, True, "One row of 32 tokens does not fit into the memory of CPU"),
    ],
)
def test_what_to_lower_keeps_the_batch(rows: int, passes: int, probe: bool, advice: str):
    error = too_large(BatchShape(rows, passes, 32), torch.device("cpu"), probe)
    assert advice in str(error) and error.status == 2


def test_processes_share_a_machine(tiny, monkeypatch):
    preset, model = tiny(), TransformerLM(tiny().model, 512)
    activations = 8 * 32 * 24 * preset.model.num_layers * preset.model.hidden_size
    needed = activations + 16 * model.num_parameters()
    needs = BatchShape(8, 2, 32), 1, torch.device("cpu"), False
    monkeypatch.setattr("engine.device.machine.total_memory", lambda device: needed)
    require_memory(model, *needs)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(PresetError, match="One row of 32 tokens does not fit"):
        require_memory(model, *needs)
    monkeypatch.setattr("engine.device.machine.total_memory", lambda device: 2 * needed - activations)
    with pytest.raises(PresetError, match=r"8 rows of 32 tokens do not fit .*; lower it to 4 and"):
        require_memory(model, *needs)
    # two of them divide the moments at stage 1
    monkeypatch.setattr(
        "engine.device.machine.total_memory", lambda device: 2 * activations + 24 * model.num_parameters()
    )
    require_memory(model, BatchShape(8, 2, 32, 0, 2), 1, torch.device("cpu"), False)


def test_memory_in_use_grows_with_what_is_held():
    """In a process of its own: after a run, this one has freed memory that it would be given again."""
    program = """
import torch
from engine.device.memory import memory_in_use
cpu = torch.device("cpu")
before = memory_in_use(cpu)
held = torch.ones(2**26)
print((memory_in_use(cpu) - before) / held.nbytes)
"""
    status, output = run_program(program)
    assert status == 0 and 0.9 < float(output) < 1.5, output
