"""What a run of a preset needs here: memory and time, from its sections and what is known of this machine."""

import math
from dataclasses import dataclass

from engine.config import TrainConfig
from engine.config.footprint import GIB, Footprint
from engine.device import host
from engine.screen.machines import Machine
from engine.screen.menu.lineage import Throughput
from model.config import AuxiliaryConfig, ModelConfig
from model.config.size import active_parameter_count, flops_per_token, padded_vocabulary, parameter_count
from sources.config import TrainBPE

USUAL_VOCABULARY = 50_257  # GPT-2's, before a tokenizer is loaded
# Share of the bare matrix-product rate that a step reaches, for an estimate before the first run here: on a CPU as
# measured by `python -m benchmarks.overhead --share --compile`, on a GPU assumed.
TRAINING_EFFICIENCY = {
    ("cpu", "bf16"): 0.58,
    ("cpu", "fp32"): 0.87,
    ("cuda", "bf16"): 0.4,
    ("cuda", "fp32"): 0.4,
}
PROCESS_BYTES = 700 * 2**20  # of a process on a CPU with its libraries
ACTIVATIONS = 18  # values of hidden_size that a block keeps per token for its backward pass; 1 where it is made again
CPU_LOGITS_BYTES = 256 * 2**20  # of the chunks in which a CPU computes the loss


@dataclass(frozen=True)
class Size:
    """A preset's model and what a step of it costs."""

    vocab_size: int
    parameters: int
    active_parameters: int  # without the experts that do not read a token
    flops_per_token: int


def size_of(model: ModelConfig, auxiliary: AuxiliaryConfig, tokenizer: str | TrainBPE) -> Size:
    """Count a preset's model; the vocabulary of a tokenizer that is not loaded yet is taken to be GPT-2's."""
    vocabulary = tokenizer.train_bpe if isinstance(tokenizer, TrainBPE) else USUAL_VOCABULARY
    return Size(
        vocabulary,
        parameter_count(model, vocabulary, auxiliary),
        active_parameter_count(model, vocabulary, auxiliary),
        flops_per_token(model, vocabulary, auxiliary),
    )


def precision(asked: str, machine: Machine) -> str:
    """ "bf16" or "fp32"; `asked` is train.precision."""
    return ("bf16" if machine.bf16 else "fp32") if asked == "auto" else asked


def memory_each(machine: Machine) -> float:
    """Bytes that one process may have."""
    return machine.memory if machine.kind == "cuda" else machine.memory / host.processes_here()


def footprint_of(model: ModelConfig, train: TrainConfig, size: Size) -> Footprint:
    """What decides the memory of one process."""
    rows = _least_rows(model, train)
    return Footprint(
        model,
        size.parameters,
        rows,
        host.processes_in_all(),
        train.offload_optimizer,
        train.checkpoint_activations,
    )


def stage_of(model: ModelConfig, train: TrainConfig, size: Size, machine: Machine | None) -> int:
    """The ZeRO stage of a run, also where train.zero_stage is "auto"; the lowest while nothing is known here."""
    memory = math.inf if machine is None else memory_each(machine)
    return footprint_of(model, train, size).lowest_stage(train.zero_stage, memory)


def _least_rows(model: ModelConfig, train: TrainConfig) -> int:
    """Of the smallest micro-batch that the preset allows; with memory tokens, windows."""
    least = train.memory_segments if model.memory_tokens else 1
    return least if train.probe_batch else train.per_gpu_batch_size


def shortage(model: ModelConfig, train: TrainConfig, size: Size, machine: Machine | None) -> str:
    """Why a model cannot be trained here, in words, even with the smallest micro-batch that the preset allows; empty
    where it may."""
    if machine is None or not machine.memory:
        return ""
    rows = _least_rows(model, train)
    needed, there = memory_needed(model, train, size, machine, rows), memory_each(machine)
    if needed <= there:
        return ""
    processes = host.processes_in_all()
    who = f"each of {processes} processes" if processes > 1 else "one process"
    return f"{who} needs about {needed / GIB:.1f} GiB of memory, and has {there / GIB:.1f}"


def memory_needed(
    model: ModelConfig, train: TrainConfig, size: Size, machine: Machine, rows: int | None = None
) -> float:
    """Bytes of one process with a micro-batch of `rows`, or else of per_gpu_batch_size, estimated: state, activations,
    logits."""
    tokens = (rows or train.per_gpu_batch_size) * model.seq_length
    width = 2 if precision(train.precision, machine) == "bf16" else 4
    kept = ACTIVATIONS * model.num_layers
    if train.checkpoint_activations:
        kept = ACTIVATIONS + model.num_layers
    state = footprint_of(model, train, size).state_bytes(stage_of(model, train, size, machine))
    needed = state + tokens * model.hidden_size * kept * width
    if machine.kind == "cpu":
        return needed + PROCESS_BYTES + CPU_LOGITS_BYTES
    return needed + tokens * padded_vocabulary(size.vocab_size) * width


def tokens_per_second(name: str, train: TrainConfig, size: Size, machine: Machine, runs: Throughput) -> float | None:
    """The throughput to expect: that of the preset's own last run here; else what other runs reached on this machine,
    or a share of its matrix products, by the FLOPs of a token. None where nothing is known."""
    if own := runs.tokens.get(name):
        return own
    kind = precision(train.precision, machine)
    if reached := machine.reached.get(kind):
        return reached / size.flops_per_token
    if product := machine.flops.get(kind):
        processes = host.processes_in_all() if machine.kind == "cuda" else 1
        return processes * TRAINING_EFFICIENCY[machine.kind, kind] * product / size.flops_per_token
    return None
