"""The sweep behind two defaults: train.learning_rate and model.init_std.

    python -m benchmarks.sweep [--tokens 350000] [--vocabulary 4096]

Every run trains the same shape (3 x 256, sequence 256) on the same batches of `python_packages` in the same order with
the project's own optimizer and schedule, and is judged by its loss on the same held-out documents. First the learning
rate at init_std 0.02, then init_std at the best learning rate.
"""

import argparse
import time

import torch

from engine.device import machine
from engine.device.ranks import local_device
from engine.optim.optimizers import adamw
from engine.optim.schedule import learning_rate
from model import ModelConfig, TransformerLM
from sources.config import DataConfig
from sources.held_out import collect_validation_set, sample_training_texts
from sources.loading.loader import BatchShape, Loader
from sources.registry import open_sources
from sources.rows.tokenizer import train_bpe

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
STDS = (0.01, 0.04)
ROWS = 8  # small steps, so that a short run has many of them
WARMUP = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=350_000, help="tokens of each run")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--held-out", type=int, default=30_000, help="held-out tokens")
    arguments = parser.parse_args()

    device = local_device()
    config = DataConfig(sources=("python_packages",))
    opened = open_sources(config)
    tokenizer = train_bpe(sample_training_texts(opened.sources, config, 8_000_000), arguments.vocabulary)
    shape = ModelConfig()
    held_out = collect_validation_set(
        opened.sources, config, tokenizer, seq_length=shape.seq_length, eval_tokens=arguments.held_out
    )
    steps = arguments.tokens // (ROWS * shape.seq_length)
    loader = Loader(opened, config, tokenizer, BatchShape(ROWS, 1, shape.seq_length))
    stream = iter(loader)
    batches = [
        (batch.input_ids[0].to(device), batch.labels[0].to(device))
        for batch, _ in zip(stream, range(steps), strict=False)
    ]
    loader.close()

    def held_out_loss(model: TransformerLM) -> float:
        total = 0.0
        with torch.no_grad():
            for rows in torch.arange(len(held_out.input_ids)).split(ROWS):
                total += model(held_out.input_ids[rows].to(device), held_out.labels[rows].to(device)).loss_sum.item()
        return total / (held_out.labels != -100).sum().item()

    def run(rate: float, std: float) -> float:
        begin = time.perf_counter()
        torch.manual_seed(0)
        model = TransformerLM(shape.model_copy(update={"init_std": std}), tokenizer.vocab_size).to(device)
        optimizer = adamw(model, rate, 0.1)
        for step, (inputs, labels) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    step, steps, peak=rate, warmup_fraction=WARMUP, final_fraction=0.1, continued=False
                )
            (model(inputs, labels).loss_sum / (labels != -100).sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        loss = held_out_loss(model)
        print(f"{rate:8.0e}  {std:8.3f}  {loss:12.4f}  {time.perf_counter() - begin:6.0f} s", flush=True)
        return loss

    print(f"{machine.describe(device)}, torch {torch.__version__}")
    print(f"3 x 256, sequence 256, vocabulary {tokenizer.vocab_size:,}, {ROWS} rows a step, {steps} steps, fp32")
    print(f"{'rate':>8}  {'init_std':>8}  {'validation loss':>15}", flush=True)
    best = min(RATES, key=lambda rate: run(rate, shape.init_std))
    losses = {std: run(best, std) for std in STDS}
    print(f"best learning rate {best:.0e}; best other init_std {min(losses, key=losses.get)}")


if __name__ == "__main__":
    main()
