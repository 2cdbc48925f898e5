"""engine/screen/menu/estimates.py: memory and throughput before a run."""

from dataclasses import replace

import pytest

from engine.config import CONFIGS, load_preset
from engine.screen.machines import Machine
from engine.screen.menu import estimates
from engine.screen.menu.estimates import memory_needed, size_of, tokens_per_second
from engine.screen.menu.lineage import Throughput
from sources.config import TrainBPE

PRESET = load_preset(CONFIGS / "03_reference.json")
SIZE = size_of(PRESET.model, PRESET.auxiliary, PRESET.data.tokenizer)
NONE = Throughput({}, {})


def rate(machine: Machine, runs: Throughput = NONE, precision: str = "auto") -> float | None:
    train = PRESET.train.model_copy(update={"precision": precision})
    return tokens_per_second("reference", train, SIZE, machine, runs)


def test_the_reference_has_as_many_parameters_as_it_says():
    assert SIZE.parameters == pytest.approx(15.3e6, rel=0.01)
    assert size_of(PRESET.model, PRESET.auxiliary, TrainBPE(train_bpe=16384)).vocab_size == 16384


def test_own_runs_come_before_other_runs_and_these_before_products(machine: Machine):
    shares = estimates.TRAINING_EFFICIENCY
    assert rate(machine) == pytest.approx(shares["cpu", "bf16"] * 4e11 / SIZE.flops_per_token)
    assert rate(machine, precision="fp32") == pytest.approx(shares["cpu", "fp32"] * 1e11 / SIZE.flops_per_token)
    reached = replace(machine, reached={"bf16": 3e11})
    assert rate(reached) == pytest.approx(3e11 / SIZE.flops_per_token)
    assert rate(reached, Throughput({"reference": 5000.0}, {})) == 5000.0
    assert rate(replace(machine, flops={})) is None


def test_gpus_share_a_run(machine: Machine, monkeypatch):
    gpu = replace(machine, kind="cuda")
    alone = rate(gpu)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert rate(gpu) == pytest.approx(8 * alone)
    assert rate(machine) == pytest.approx(rate(replace(machine)))


def test_memory_is_near_what_was_measured(machine: Machine):
    """README: 4,469 MiB on one H200 with 32,768 tokens in a micro-batch, 1,480 MiB on two cores with 8,192 tokens and
    a vocabulary of 16,384."""
    gpu = replace(machine, kind="cuda")
    on_gpu = memory_needed(PRESET.model, PRESET.train, SIZE, gpu)
    assert on_gpu == pytest.approx(4469 * 2**20, rel=0.15)
    train = PRESET.train.model_copy(update={"per_gpu_batch_size": 32})
    small = size_of(PRESET.model, PRESET.auxiliary, TrainBPE(train_bpe=16384))
    assert memory_needed(PRESET.model, train, small, machine) == pytest.approx(1480 * 2**20, rel=0.25)
    assert memory_needed(PRESET.model, train, SIZE, gpu) < on_gpu


def test_the_stage_follows_the_memory_and_the_processes(machine: Machine, monkeypatch):
    """PRESET's model has 15.3 million parameters, of 16 bytes each."""
    train = PRESET.train.model_copy(update={"zero_stage": "auto", "per_gpu_batch_size": 1})
    gpu = replace(machine, kind="cuda")
    assert estimates.stage_of(PRESET.model, train, SIZE, gpu) == 0
    assert not estimates.shortage(PRESET.model, train, SIZE, gpu)
    assert not estimates.shortage(PRESET.model, train, SIZE, None), "not known yet"
    tiny = replace(gpu, memory=100 * 10**6)
    assert estimates.shortage(PRESET.model, train, SIZE, tiny).startswith("one process needs about 0.3 GiB of memory")
    alone = memory_needed(PRESET.model, train, SIZE, tiny)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert estimates.stage_of(PRESET.model, train, SIZE, tiny) == 3
    assert not estimates.shortage(PRESET.model, train, SIZE, tiny)
    assert alone - memory_needed(PRESET.model, train, SIZE, tiny) == pytest.approx(14 * SIZE.parameters)


def test_activations_that_are_made_again_are_not_kept(machine: Machine):
    again = PRESET.train.model_copy(update={"checkpoint_activations": True})
    kept, fewer = (memory_needed(PRESET.model, train, SIZE, machine) for train in (PRESET.train, again))
    shape = PRESET.model
    values = PRESET.train.per_gpu_batch_size * shape.seq_length * shape.hidden_size
    assert kept - fewer == 2 * values * (18 * shape.num_layers - 18 - shape.num_layers)


def test_a_share_of_the_memory_is_each_process_s(machine: Machine, monkeypatch):
    monkeypatch.setenv("LOCAL_SIZE", "2")
    assert estimates.memory_each(machine) == machine.memory / 2
    assert estimates.memory_each(replace(machine, kind="cuda")) == machine.memory
