"""nanoGPT's recipe beside ours: how many of its tokens a run here needs to reach its final loss.

    python -m benchmarks.nanogpt RUNS [--tokens 1000000] [--seeds 0] [--rates 6e-4,1e-3,3e-3] [--of now]
                                 [--shares 0.06,0.08,0.12] [--shape 256x3]

Both train on `python_packages`, with the same tokenizer and shape, and are judged on the same held-out rows. Steps have
as many tokens, but for variants that say otherwise. The recipe is what nanoGPT's training script does by its advice for
small networks: GPT-2's block without biases, weights drawn with a deviation of 0.02 and smaller ones into the residual
stream, random crops of one stream of tokens, AdamW with betas of 0.9 and 0.99, decay of 0.1 for matrices, gradients
clipped to 1, a rate that rises over 5% of the steps (its 100 of 2,000) and falls by a cosine to a tenth; the best of
several rates counts. Its code is not used. A run here is made by main.py's own job, and has its schedule over its own
length. Runs are kept in RUNS.
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lookahead import finished
from benchmarks.variants import Made, preset
from benchmarks.variants_figures import Point, time_to
from engine import train
from engine.checkpoint.folder import CURRENT
from engine.data.validation import FILE_NAME
from engine.device import machine
from engine.device.ranks import join, leave, local_device
from model import ModelConfig, TransformerLM
from model.loss import IGNORE_INDEX
from model.snapshot import container, file
from sources.loading.loader import BatchShape, Loader, LoaderOptions
from sources.registry import open_sources
from sources.rows.near_copies import NearCopies
from sources.rows.tokenizer import TextTokenizer

STREAM_TOKENS = 20_000_000  # at most, of the training text
WARMUP_SHARE, FINAL_RATE, DEVIATION = 0.05, 0.1, 0.02


def recipe_model(config: ModelConfig, vocab_size: int, seed: int) -> TransformerLM:
    """GPT-2's shape without biases, drawn as the recipe draws it."""
    torch.manual_seed(seed)
    shape = config.model_dump(include={"num_layers", "num_heads", "hidden_size", "seq_length"})
    model = TransformerLM(ModelConfig(**shape, bias=False), vocab_size)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            inward = name.endswith(("out_proj.weight", "down.weight"))
            torch.nn.init.normal_(parameter, std=DEVIATION / math.sqrt(2 * config.num_layers) if inward else DEVIATION)
    return model


def rate_at(step: int, steps: int, peak: float) -> float:
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * share)))


def train_by_recipe(model: TransformerLM, stream: Tensor, rows: int, steps: int, peak: float, seed: int) -> None:
    """On random crops of a stream of tokens (N,), `rows` a step."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=True)
    device, length = model.tokens.weight.device, model.config.seq_length
    bf16 = machine.native_bf16(device)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, peak)
        starts = torch.randint(len(stream) - length - 1, (rows,), generator=generator)
        crops = torch.stack([stream[start : start + length + 1] for start in starts]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss_sum, *_ = model(crops[:, :-1], crops[:, 1:])
        (loss_sum / crops[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def held_out_loss(model: TransformerLM, folder: Path) -> float:
    """Nats a token over the rows on which the run in `folder` was evaluated."""
    rows, model = container.read(folder / FILE_NAME), model.eval()
    total, tokens = 0.0, 0
    for inputs, labels in zip(rows["input_ids"].split(16), rows["labels"].split(16), strict=True):
        device = model.tokens.weight.device
        total += float(model(inputs.to(device), labels.to(device))[0])
        tokens += int((labels != IGNORE_INDEX).sum())
    return total / tokens


def training_stream(made: Made, folder: Path, shape: tuple[int, int], most: int) -> Tensor:
    """The training text of a run, document after document, as one stream of tokens (N,) int64."""
    own, snapshot = preset(made, None, shape), file.read(folder / CURRENT, verify=False)
    tokenizer = TextTokenizer.from_json(snapshot.tokenizer, snapshot.config["eos_token_id"])
    batch_shape = BatchShape(16, 1, own.model.seq_length)
    near_copies = NearCopies.of(itertools.chain.from_iterable(container.read(folder / FILE_NAME)["texts"].values()))
    options = LoaderOptions(seed=made.seed, near_copies=near_copies)
    loader = Loader(open_sources(own.data), own.data, tokenizer, batch_shape, options)
    found, tokens = [], 0
    try:
        for batch in loader:
            if any(event["what"] == "next_pass" for event in batch.events):  # the text is read once
                break
            labels = batch.labels.flatten()
            found.append(labels[labels != IGNORE_INDEX].clone())
            if (tokens := tokens + len(found[-1])) >= most:
                break
    finally:
        loader.close()
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rates", default="6e-4,1e-3,3e-3")
    parser.add_argument("--of", default="now", help="variants of benchmarks.variants, with rows of one length")
    parser.add_argument("--shares", default="0.06,0.08,0.12", help="of the tokens, for runs of ours")
    parser.add_argument("--shape", default="256x3", help="width x layers")
    parser.add_argument("--stream", type=int, default=STREAM_TOKENS, help="tokens of training text, at most")
    arguments = parser.parse_args()
    width, layers = map(int, arguments.shape.split("x"))
    shares, device = sorted(map(float, arguments.shares.split(","))), local_device()
    print(f"{machine.describe(device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    for seed in map(int, arguments.seeds.split(",")):
        ranks = join()
        ours: dict[str, list[Point]] = {}
        for variant, share in itertools.product(arguments.of.split(","), shares):
            made = Made(variant, share, seed, "python")
            folder, budget = arguments.runs / made.folder, made.tokens(arguments.tokens)
            if not finished(folder, budget):
                train(preset(made, None, (width, layers)), token_budget=budget, checkpoint_dir=folder, ranks=ranks)
            evaluation = file.read(folder / CURRENT, verify=False).progress["evaluation"]
            ours.setdefault(variant, []).append((share, evaluation["ce"]))
            print(f"  seed {seed}, {made.label:16} {budget:>10,} tokens   held-out {evaluation['ce']:.4f}", flush=True)
        leave()
        own = preset(Made("now", 1.0, seed, "python"), None, (width, layers))
        rows = own.train.per_gpu_batch_size
        steps = arguments.tokens // (rows * own.model.seq_length)
        stream = training_stream(made, folder, (width, layers), arguments.stream)
        vocab_size, theirs = file.read(folder / CURRENT, verify=False).config["vocab_size"], []
        for rate in map(float, arguments.rates.split(",")):
            model = recipe_model(own.model, vocab_size, seed).to(device)
            train_by_recipe(model, stream, rows, steps, rate, seed)
            theirs.append(held_out_loss(model, folder))
            print(
                f"  seed {seed}, nanoGPT's, {rate:g}    {arguments.tokens:>10,} tokens   held-out {theirs[-1]:.4f}",
                flush=True,
            )
        print(f"  seed {seed}: to its best loss, from {len(stream):,} tokens of text (aim: 0.08 of its tokens):")
        for variant, points in ours.items():
            found = time_to(points, min(theirs))
            share = "not reached" if found is None else f"{found[0].strip('=')}{found[1]:.3f} of its tokens"
            print(f"  {variant:16} {share}", flush=True)


if __name__ == "__main__":
    main()
