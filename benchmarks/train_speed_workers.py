"""The trainers of benchmarks.train_speed, each in a process of its own, paused between rounds.

A worker is told on standard input how many steps to make, makes them, and prints seconds and peak memory as a line of
JSON. All have the same shape, data, batch, precision and AdamW; gradients are clipped to norm 1. The variable PRECISION
says what `precision: "auto"` means here: bf16 by autocast where the device multiplies it natively, else fp32.
"""

import argparse
import contextlib
import json
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.overhead import real_bytes

RATE, DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1.0
BF16 = os.environ.get("PRECISION", "bf16") == "bf16"
LIGHTNING = "bf16-mixed" if BF16 else "32-true"  # its name for it


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    length: int
    vocabulary: int
    rows: int

    @property
    def heads(self) -> int:
        return self.width // 64


class Gate:
    """Called before every step: says what the last round took, and waits for the next. Between rounds a GPU's memory is
    the others', so there each round begins with a step that is not timed."""

    def __init__(self, device: torch.device, report: Callable[[str], None]):
        self.on_gpu, self.report, self.left, self.begin = device.type == "cuda", report, 0, None
        self.untimed = False

    def __call__(self) -> None:
        if self.left == 0:
            self._synchronize()
            seconds = None if self.begin is None else time.perf_counter() - self.begin
            self.report(json.dumps({"seconds": seconds, "memory": self._peak()}))
            if self.on_gpu:
                torch.cuda.empty_cache()
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # some of these loops cannot be left otherwise
            self.left, self.begin, self.untimed = int(line), time.perf_counter(), self.on_gpu
        elif self.untimed:
            self._synchronize()
            self.begin, self.untimed = time.perf_counter(), False
        if not self.untimed:
            self.left -= 1

    def _synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _peak(self) -> int:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def batches(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels (rows, length) without end: pairs of bytes of the standard library's sources as token ids."""
    text = real_bytes(4 * shape.rows * shape.length + 2)
    ids = (256 * text[:-1] + text[1:]) % shape.vocabulary
    pieces = [ids[i * shape.rows * shape.length :][: shape.rows * shape.length + 1] for i in range(4)]
    if torch.cuda.is_available():
        pieces = [piece.pin_memory() for piece in pieces]  # as a loader hands it on
    while True:
        for piece in pieces:
            yield piece[:-1].view(shape.rows, -1), piece[1:].view(shape.rows, -1)


class Plain(nn.Module):
    """GPT-2's architecture as anyone would write it down."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int):
            super().__init__()
            self.heads = heads
            self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            parts = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm_2(x))))

    def __init__(self, shape: Shape):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.ModuleList(self.Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


def plain(shape: Shape, device: torch.device, gate: Gate, compiled: bool) -> None:
    model = Plain(shape).to(device)
    _loop(model, model.compile if compiled else None, shape, device, gate)


def ours_bare(shape: Shape, device: torch.device, gate: Gate, compiled: bool) -> None:
    """Our model in the same plain loop, without the engine."""
    from engine.device import machine
    from model import ModelConfig, TransformerLM

    config = ModelConfig(
        hidden_size=shape.width, num_layers=shape.layers, num_heads=shape.heads, seq_length=shape.length
    )
    machine.keep_freed_memory(device)
    model = TransformerLM(config, shape.vocabulary).to(device)

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
            return self.model(ids, labels).loss_sum / labels.numel()

    _loop(Mean(), model.compile if compiled else None, shape, device, gate)


def _loop(model: nn.Module, compile_it: Callable | None, shape: Shape, device: torch.device, gate: Gate) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), RATE, BETAS, weight_decay=DECAY, fused=True)
    if compile_it is not None:
        compile_it()
    for ids, labels in batches(shape):
        gate()
        with torch.autocast(device.type, torch.bfloat16, enabled=BF16):
            loss = model(ids.to(device), labels.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()


def ours(
    shape: Shape, device: torch.device, gate: Gate, compiled: bool, products: str = "auto", **options: Any
) -> None:
    """The step that main.py makes: DeepSpeed's engine, the guard and all. Of several processes each has such a shape;
    ZERO_STAGE is theirs. `options` are the model's."""
    from engine.config import TrainConfig
    from engine.device import deepspeed_engine, machine
    from engine.device.compiling import compile_model
    from engine.device.ranks import join
    from engine.events import EventLog
    from engine.run.stability import StabilityGuard
    from engine.run.step import StepRunner
    from engine.screen.console import Console
    from model import ModelConfig, TransformerLM
    from model.products.linear import use_kernel
    from sources.loading.loader import Batch, BatchShape

    ranks = join()
    sizes = {"hidden_size": shape.width, "num_layers": shape.layers, "seq_length": shape.length}
    config = ModelConfig(**sizes, **{"num_heads": shape.heads} | options)
    stage = int(os.environ.get("ZERO_STAGE", "1"))
    train = TrainConfig(learning_rate=RATE, zero_stage=stage, products=products)
    log = EventLog(Path(), Console(enabled=False))
    use_kernel(machine.choose_products(train, shape.width, BF16, None, ranks, log))
    batch_shape = BatchShape(shape.rows, 1, shape.length, ranks.rank, ranks.world_size)
    engine = deepspeed_engine.initialize(TransformerLM(config, shape.vocabulary), train, batch_shape, ranks, BF16)
    if compiled:
        compile_model(engine)
    runner, guard = StepRunner(engine, ranks, 1, CLIP), StabilityGuard("log", 10)
    pinned = {"pin_memory": device.type == "cuda"}
    segments = torch.zeros(1, shape.rows, shape.length, dtype=torch.int32, **pinned)
    sources = torch.zeros(1, shape.rows, dtype=torch.int64, **pinned)
    tokens = shape.rows * shape.length * ranks.world_size
    for ids, labels in batches(shape):
        gate()
        batch = Batch(ids[None], labels[None], segments, sources, labels.numel(), 0, {}, [])
        result = runner.run(batch, tokens, guard)
        guard.after_step(result.loss, result.skipped)


def ours_torch(shape: Shape, device: torch.device, gate: Gate, compiled: bool) -> None:
    """The same with torch's products where `train.products` "auto" might take the kernel's."""
    ours(shape, device, gate, compiled, products="torch")


def ours_lean(shape: Shape, device: torch.device, gate: Gate, compiled: bool) -> None:
    """The same with as many parameters and FLOPs where a GPU is better at them: heads twice as wide, squared ReLU for
    GELU, RMSNorm for LayerNorm, no biases."""
    options = {"num_heads": shape.width // 128, "bias": False, "norm": "rms", "mlp": "squared_relu"}
    ours(shape, device, gate, compiled, **options)


def trainer(shape: Shape, device: torch.device, gate: Gate, compiled: bool) -> None:
    """transformers' Trainer and its GPT-2."""
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    transformers.logging.set_verbosity_error()
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.length,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    )

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for ids, _ in batches(shape):
                yield from ({"input_ids": row, "labels": row} for row in ids)  # the model shifts the labels itself

    class Pause(TrainerCallback):
        def on_step_begin(self, *arguments, **options) -> None:
            gate()

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.rows,
        max_steps=1_000_000,
        learning_rate=RATE,
        weight_decay=DECAY,
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        bf16=BF16,
        use_cpu=device.type == "cpu",
        optim="adamw_torch_fused",
        torch_compile=compiled,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=Rows(), callbacks=[Pause()]).train()


def fabric(shape: Shape, device: torch.device, gate: Gate, compiled: bool) -> None:
    """Lightning Fabric around the hand-written model."""
    from lightning.fabric import Fabric

    lightning = Fabric(accelerator=device.type, devices=1, precision=LIGHTNING)
    model = Plain(shape)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, BETAS, weight_decay=DECAY, fused=True)
    model, optimizer = lightning.setup(torch.compile(model) if compiled else model, optimizer)
    for ids, labels in batches(shape):
        gate()
        lightning.backward(model(ids.to(device), labels.to(device)))
        lightning.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()


def litgpt(shape: Shape, device: torch.device, gate: Gate, compiled: bool) -> None:
    """litgpt's pretraining, which always compiles; its GPT has no learned positions, so it has none here."""
    from litgpt import Config
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.pretrain import setup

    def collated(gated: bool) -> Iterator[Tensor]:
        for ids, labels in batches(shape):
            if gated:
                gate()
            yield torch.cat([ids, labels[:, -1:]], 1)

    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, gated: bool):
            self.gated = gated

        def __iter__(self) -> Iterator[Tensor]:
            return collated(self.gated)

    @dataclass
    class Text(DataModule):
        def connect(self, tokenizer=None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
            pass

        def train_dataloader(self) -> torch.utils.data.DataLoader:
            return torch.utils.data.DataLoader(Stream(True), batch_size=None)

        def val_dataloader(self) -> torch.utils.data.DataLoader:
            return torch.utils.data.DataLoader(Stream(False), batch_size=None)

    config = Config(
        block_size=shape.length,
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
        parallel_residual=False,
        rotary_percentage=0.0,
        intermediate_size=4 * shape.width,
        **({"attn_bias": True} if hasattr(Config, "attn_bias") else {}),  # else `bias` says it
    )
    folder = Path(tempfile.mkdtemp())
    setup(
        "pythia-14m",
        model_config=config,
        out_dir=folder,
        precision=LIGHTNING,
        data=Text(),
        train=TrainArgs(
            save_interval=None,
            log_interval=1_000_000,
            global_batch_size=shape.rows,
            micro_batch_size=shape.rows,
            max_tokens=10**12,
            max_norm=CLIP,
            lr_warmup_steps=100,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1, initial_validation=False, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": RATE, "weight_decay": DECAY, "betas": BETAS},
        },
        devices=1,
        logger_name="csv",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "trainer", choices=("ours", "ours_torch", "ours_bare", "ours_lean", "plain", "trainer", "fabric", "litgpt")
    )
    parser.add_argument("shape", help="width,layers,length,vocabulary,rows")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    out = os.fdopen(os.dup(1), "w")  # what libraries print must not get between
    os.dup2(2, 1)

    def report(line: str) -> None:
        print(line, file=out, flush=True)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Shape(*map(int, arguments.shape.split(",")))
    torch.manual_seed(0)
    with contextlib.redirect_stdout(sys.stderr):
        globals()[arguments.trainer](shape, device, Gate(device, report), arguments.compile)


if __name__ == "__main__":
    main()
