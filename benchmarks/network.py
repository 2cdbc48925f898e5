"""Bytes that a step sends, by ZeRO stage: a model, checked against counters of a network card, and what it means for
larger machines.

    python -m benchmarks.network [--no-measure]

Measured on two hosts that are network namespaces of this machine (tests/helpers/hosts.py; root and iproute2): the bytes
that the first host's interface sends in runs of two lengths, the difference divided by the steps between them.
Byte counts do not depend on how busy a machine is. --no-measure prints the tables alone.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import CONFIGS, load_preset
from model.config import ModelConfig
from model.transformer import TransformerLM
from tests.helpers.hosts import Network, group, problem
from tests.helpers.text import REPOSITORY, write_topics
from tests.helpers.training import tiny_values

WORKER = str(REPOSITORY / "tests/helpers/workers/training.py")
MEASURED = {"hidden_size": 384, "num_layers": 2, "num_heads": 4, "seq_length": 16}
STEPS = 10, 30
FP32 = 4
NETWORK, NVLINK = 12.5e9, 450e9  # bytes/s one way: 100 Gbit/s of a host; fourth generation of a GPU (data sheets)
GPUS_OF_A_HOST = 8
PEAK, SHARE = 989e12, 0.4  # of an H100 in bf16 (data sheet), and the share of it that is assumed
TOKENS = 16_384  # of a micro-batch on one GPU


def sent_by_a_rank(parameters: int, stage: int, world_size: int, accumulation_steps: int) -> float:
    """Bytes that each rank of `world_size` sends in a step, by rings.

    An all-reduce sends the whole twice, an all-gather or a reduce-scatter once, each less the rank's own share.
    Everything travels in fp32.

    Gradients are all-reduced, at stages 0 and 1 once a step, at stage 2 after every micro-batch: DeepSpeed reduces a
    bucket for all ranks and lets each keep its part. Stages 1 and 2 then gather the stepped weights. Stage 3 gathers
    the weights for the forward and for the backward pass of each micro-batch, and scatters its gradients.
    """
    whole = FP32 * parameters * (world_size - 1) / world_size
    if stage == 3:
        return 3 * whole * accumulation_steps
    gradients = 2 * whole * (accumulation_steps if stage == 2 else 1)
    return gradients + (whole if stage else 0)


# Measuring


def measure(stage: int, accumulation_steps: int, ranks: int, topics: Path) -> tuple[float, int]:
    """Bytes that the first host sends in a step, and the model's parameters. Each of two hosts has `ranks` ranks."""
    totals, parameters = [], 0
    for steps in STEPS:
        with tempfile.TemporaryDirectory() as root, Network(Path(root)) as network:
            train = {
                "per_gpu_batch_size": 1,
                "accumulation_steps": accumulation_steps,
                "zero_stage": stage,
                "eval_tokens": 1,
                "eval_interval_tokens": 10**9,
                "log_interval_seconds": 1e9,
            }
            values = tiny_values(topics, model=MEASURED, train=train)
            rows = accumulation_steps * 2 * ranks
            arguments = [json.dumps(values), "checkpoints", str(rows * MEASURED["seq_length"] * steps), "0"]
            program = f"sys.argv = ['training.py', *{arguments!r}]\nrunpy.run_path({WORKER!r}, run_name='__main__')"
            jobs = [host.fork(program, **variables) for host, variables in group(network, ranks)]
            printed = [job.communicate(timeout=600)[0] for job in jobs]
            assert [job.wait() for job in jobs] == [0] * len(jobs), printed[0][-3000:]
            totals.append(network.hosts[0].sent_bytes())
            lines = (network.hosts[0].folder / "checkpoints" / "metrics.jsonl").read_text().splitlines()
            events = [json.loads(line) for line in lines]
            parameters = next(event["derived"]["parameters"] for event in events if event["event"] == "run")
            done = max(event["step"] for event in events if event["event"] == "step")
            assert done == steps, done
    return (totals[1] - totals[0]) / (STEPS[1] - STEPS[0]), parameters


def measured_table() -> None:
    print("Bytes that one of two hosts sends in a step; a ring passes its card once, so it sends what one rank does\n")
    print(f"{'ranks a host':>12} {'stage':>6} {'micro-batches':>14} {'predicted':>14} {'measured':>14} {'apart':>7}")
    with tempfile.TemporaryDirectory() as folder:
        topics = write_topics(Path(folder), every=3)
        for ranks in (1, 2):
            for stage in (0, 1, 2, 3):
                for accumulation_steps in (1, 4):
                    found, parameters = measure(stage, accumulation_steps, ranks, topics)
                    predicted = sent_by_a_rank(parameters, stage, 2 * ranks, accumulation_steps)
                    row = f"{ranks:>12} {stage:>6} {accumulation_steps:>14} {predicted:>14,.0f} {found:>14,.0f}"
                    print(f"{row} {found / predicted - 1:>+7.1%}", flush=True)
    print(f"\n{parameters:,} parameters")


# On paper


@dataclass(frozen=True)
class Size:
    """A model on paper."""

    name: str
    parameters: int
    flops_per_token: int


def sizes() -> list[Size]:
    gpt2 = ModelConfig(hidden_size=768, num_layers=12, num_heads=12, seq_length=1024)
    large = load_preset(CONFIGS / "05_large.json").model
    small = load_preset(CONFIGS / "00_best_general.json").model
    found = []
    for name, config in (("30 M", small), ("124 M", gpt2), ("1.5 B", large)):
        with torch.device("meta"):
            model = TransformerLM(config, 50_257)
        found.append(Size(name, model.num_parameters(), model.flops_per_token()))
    return found


def seconds(size: Size, stage: int, gpus: int, accumulation_steps: int) -> tuple[float, float]:
    """Of a step: computing, and sending, by the slowest link on the way."""
    compute = TOKENS * accumulation_steps * size.flops_per_token / (PEAK * SHARE)
    link = NVLINK if gpus <= GPUS_OF_A_HOST else NETWORK
    return compute, sent_by_a_rank(size.parameters, stage, gpus, accumulation_steps) / link


def paper_tables() -> None:
    print(
        f"\nOn paper: H100s at {SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s, {TOKENS:,} tokens a micro-batch on each, "
        f"hosts of {GPUS_OF_A_HOST}\nwith one link of 100 Gbit/s; up to {GPUS_OF_A_HOST} GPUs by NVLink, "
        f"{NVLINK / 1e9:.0f} GB/s one way. Sending as a share of computing:\nabove 100% the network bounds the step "
        "even where both overlap whole.\n"
    )
    worlds = (2, 8, 16, 32, 64)
    for accumulation_steps in (1, 8):
        print(f"accumulation_steps {accumulation_steps}")
        print(f"{'model':>8} {'stage':>6} {'GB a step':>10}" + "".join(f"{f'{gpus} GPUs':>10}" for gpus in worlds))
        for size in sizes():
            for stage in range(4):
                sent = sent_by_a_rank(size.parameters, stage, 64, accumulation_steps)
                shares = []
                for gpus in worlds:
                    compute, sending = seconds(size, stage, gpus, accumulation_steps)
                    shares.append(f"{sending / compute:>10.0%}")
                print(f"{size.name:>8} {stage:>6} {sent / 1e9:>10.2f}" + "".join(shares))
        print()
    print("micro-batches a step from which 64 GPUs on 100 Gbit/s compute for longer than they send")
    print(f"{'model':>8}" + "".join(f"{f'stage {stage}':>10}" for stage in range(4)))
    for size in sizes():
        row = []
        for stage in range(4):
            enough = [n for n in (1, *range(2, 257)) if (s := seconds(size, stage, 64, n))[0] >= s[1]]
            row.append(f"{enough[0] if enough else 'none':>10}")
        print(f"{size.name:>8}" + "".join(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-measure", action="store_true")
    chosen = parser.parse_args()
    if reason := problem() if not chosen.no_measure else None:
        print(f"not measured: {reason}")
    elif not chosen.no_measure:
        measured_table()
    paper_tables()


if __name__ == "__main__":
    main()
