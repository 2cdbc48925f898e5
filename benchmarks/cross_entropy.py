"""The head and its loss, forward and backward: ours beside torch's, and what bf16 costs where it is emulated.

    python -m benchmarks.cross_entropy [--rounds 5]

Peers: F.linear with F.cross_entropy, and F.linear_cross_entropy where this torch has it. They take turns; medians. The
hidden states and weights are drawn at random, since the time does not depend on them.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from engine import machine
from engine.ranks import local_device
from model.objectives import linear_cross_entropy

WIDTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = local_device()
    print(f"{machine.describe(device)}, torch {torch.__version__}, width {WIDTH}, fp32, medians of {arguments.rounds}")
    for tokens, vocabulary in ((2048, 16_384), (2048, 50_304)):
        hidden = torch.randn(tokens, WIDTH, device=device, requires_grad=True)
        weight = torch.randn(vocabulary, WIDTH, device=device).mul_(0.02).requires_grad_()
        labels = torch.randint(vocabulary, (tokens,), device=device)
        losses = {
            "ours": lambda h=hidden, w=weight, y=labels: linear_cross_entropy(h, w, None, y)[0],
            "F.linear + F.cross_entropy": lambda h=hidden, w=weight, y=labels: F.cross_entropy(
                F.linear(h, w), y, reduction="sum"
            ),
        }
        if hasattr(F, "linear_cross_entropy"):
            losses["F.linear_cross_entropy"] = lambda h=hidden, w=weight, y=labels: F.linear_cross_entropy(
                h, w, y, reduction="sum"
            )
        seconds: dict[str, list[float]] = {name: [] for name in losses}
        for _ in range(arguments.rounds + 1):
            for name, loss in losses.items():
                hidden.grad = weight.grad = None
                begin = time.perf_counter()
                loss().backward()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - begin)
        print(f"\n{tokens:,} tokens x {vocabulary:,}")
        for name, times in seconds.items():
            print(f"  {name:28} {statistics.median(times[1:]):7.3f} s")  # the first round warms up
    print("\nmatrix products, (2048, 256) x (256, 4096)")
    for dtype in (torch.float32, torch.bfloat16):
        rate = machine.flops_per_second(device, dtype) / 1e9
        print(f"  {str(dtype).removeprefix('torch.'):9} {rate:8.1f} GFLOP/s")


if __name__ == "__main__":
    main()
