"""The head and its loss, forward and backward: ours beside torch's, and what bf16 costs where it is emulated.

    python -m benchmarks.cross_entropy [--rounds 5] [--precision bf16] [--tokens 4096] [--chunks]

Peers: F.linear with F.cross_entropy, as it is and compiled, and F.linear_cross_entropy where this torch has it. They
take turns; medians. The hidden states and weights are drawn at random, since the time does not depend on them. In bf16
where the device multiplies it natively; --chunks tries sizes of ours.
"""

import argparse
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.device import machine
from engine.device.ranks import local_device
from model import loss as head_loss

WIDTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("bf16", "fp32"))
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--chunks", action="store_true")
    arguments = parser.parse_args()
    device = local_device()
    on_gpu = device.type == "cuda"
    machine.keep_freed_memory(device)
    precision = arguments.precision or ("bf16" if machine.native_bf16(device) else "fp32")
    tokens = arguments.tokens or (32_768 if on_gpu else 2048)
    print(
        f"{machine.describe(device)}, torch {torch.__version__}, width {WIDTH}, {precision}, "
        f"medians of {arguments.rounds}"
    )
    for vocabulary in (16_384, 50_304):
        hidden = torch.randn(tokens, WIDTH, device=device, requires_grad=True)
        weight = torch.randn(vocabulary, WIDTH, device=device).mul_(0.02).requires_grad_()
        labels = torch.randint(vocabulary, (tokens,), device=device)

        def plain(h=hidden, w=weight, y=labels) -> Tensor:
            return F.cross_entropy(F.linear(h, w), y, reduction="sum")

        def ours(h=hidden, w=weight, y=labels) -> Tensor:
            return head_loss.linear_cross_entropy(h, w, None, y)[0]

        compiled = torch.compile(ours)

        def ours_in_chunks(chunk_bytes: int, ours=compiled) -> Tensor:
            head_loss.CPU_CHUNK_BYTES = head_loss.GPU_CHUNK_BYTES = chunk_bytes
            return ours()

        losses = {
            "ours, compiled": compiled,
            "ours": ours,
            "F.linear + F.cross_entropy, compiled": torch.compile(plain),
            "F.linear + F.cross_entropy": plain,
        }
        if hasattr(F, "linear_cross_entropy"):
            losses["F.linear_cross_entropy"] = lambda h=hidden, w=weight, y=labels: F.linear_cross_entropy(
                h, w, y, reduction="sum"
            )
        if arguments.chunks:
            sizes = [2**power for power in (range(26, 34) if on_gpu else range(22, 30))]
            losses = {f"chunks of {size / 2**20:,.0f} MiB": partial(ours_in_chunks, size) for size in sizes}
        seconds: dict[str, list[float]] = {name: [] for name in losses}
        for _ in range(arguments.rounds + 1):
            for name, loss in losses.items():
                hidden.grad = weight.grad = None
                begin = time.perf_counter()
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    total = loss()
                total.backward()
                if on_gpu:
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - begin)
        print(f"\n{tokens:,} tokens x {vocabulary:,}")
        for name, times in seconds.items():
            print(f"  {name:36} {1e3 * statistics.median(times[1:]):9.2f} ms")  # the first round warms up
    print("\nmatrix products, (2048, 256) x (256, 4096)")
    for dtype in (torch.float32, torch.bfloat16):
        rate = machine.flops_per_second(device, dtype) / 1e9
        print(f"  {str(dtype).removeprefix('torch.'):9} {rate:8.1f} GFLOP/s")


if __name__ == "__main__":
    main()
