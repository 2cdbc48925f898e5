"""The menu's table: of each preset whether it can be trained now, how large its model is, how long a run takes here."""

import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console as RichConsole
from rich.table import Table

from engine import events
from engine.config import CONFIGS, Preset, load_preset
from engine.device import machine
from engine.errors import PresetError
from engine.formatting import count, duration
from engine.screen.streams import OUTPUT
from engine.screen.text import literal
from model.config import AuxiliaryConfig, ModelConfig
from model.transformer import TransformerLM
from sources.config import TrainBPE
from sources.registry import probe
from sources.rows.tokenizer import tokenizer_available

PROBE_SECONDS = 3.0
# Share of the bare matrix-product rate that a step reaches, for an estimate before the first run here: measured
# on a CPU by benchmarks/overhead.py, assumed on a GPU.
TRAINING_EFFICIENCY = {"cpu": 0.7, "cuda": 0.4}
USUAL_VOCABULARY = 50_257  # GPT-2's, for an estimate before a tokenizer is loaded


@dataclass(frozen=True)
class MenuEntry:
    """One line of the menu. `preset` is None where its file cannot be parsed."""

    path: Path
    preset: Preset | None
    problem: str = ""  # why it cannot be trained now; empty where it can


def read_entries(files: Iterable[Path]) -> list[MenuEntry]:
    """Parses presets, and probes their tokenizers and sources, all at the same time."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(_read_entry, files))


def show_table(entries: list[MenuEntry], tokens_per_run: int, checkpoint_dir: Path) -> None:
    """Prints the entries with what a run of `tokens_per_run` takes: at the throughput of earlier runs in
    `checkpoint_dir`, else at this machine's rate of matrix products."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processes = int(os.environ.get("WORLD_SIZE", "1")) if device.type == "cuda" else 1
    dtype = torch.bfloat16 if machine.native_bf16(device) else torch.float32
    flops = processes * TRAINING_EFFICIENCY[device.type] * machine.flops_per_second(device, dtype)
    measured = measured_throughputs(checkpoint_dir)
    table = Table(title=f"Presets in {CONFIGS}/  ({machine.describe(device)})", title_justify="left", box=None)
    for heading in ("preset", "parameters", "sources", "data", "a run here"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "preset")  # its name is what is typed
    for entry in entries:
        name, preset = literal(entry.path.stem), entry.preset
        if preset is None:
            table.add_row(name, "", f"[red]cannot be used[/]: {literal(entry.problem)}")
            continue
        model = model_without_weights(preset.model, preset.auxiliary, preset.data.tokenizer)
        seconds = tokens_per_run / (measured.get(preset.name) or flops / model.flops_per_token())
        size, sources = count(model.num_parameters()), literal(", ".join(preset.data.weights()))
        state = "[yellow]not reachable[/]" if entry.problem else "[green]reachable[/]"
        table.add_row(name, size, sources, state, f"about {duration(seconds)}")
    RichConsole(file=OUTPUT).print(table)


def measured_throughputs(checkpoint_dir: Path) -> dict[str, float]:
    """Tokens/s of earlier runs in a folder, by the preset's name: the median of the last 20 reports of each."""
    reports: defaultdict[str, list[float]] = defaultdict(list)
    name = ""
    for event in events.read(checkpoint_dir):
        if event["event"] == "run":
            name = event.get("preset", {}).get("name", "")
        elif event["event"] == "step" and event.get("tokens_per_second"):
            reports[name].append(event["tokens_per_second"])
    return {name: median(rates[-20:]) for name, rates in reports.items()}


def model_without_weights(model: ModelConfig, auxiliary: AuxiliaryConfig, tokenizer: str | TrainBPE) -> TransformerLM:
    """A preset's model on the meta device, for counting."""
    with torch.device("meta"):
        vocab_size = tokenizer.train_bpe if isinstance(tokenizer, TrainBPE) else USUAL_VOCABULARY
        return TransformerLM(model, vocab_size, auxiliary)


def _read_entry(path: Path) -> MenuEntry:
    try:
        preset = load_preset(path)
    except PresetError as error:
        return MenuEntry(path, None, str(error))
    if reason := tokenizer_available(preset.data.tokenizer):
        return MenuEntry(path, preset, f"tokenizer {preset.data.tokenizer}: {reason}")
    reasons = {spec.source_name: probe(spec, PROBE_SECONDS) for spec in preset.data.sources}
    problem = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    return MenuEntry(path, preset, "" if None in reasons.values() else problem)  # one readable source is enough
