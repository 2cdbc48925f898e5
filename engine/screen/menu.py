"""What a person is asked: which preset to train, or what to do with the model that is there; and what an unattended
start answers instead.

Only rank 0 asks. At a terminal a table shows of each preset whether it can be trained now, how large its model is and
how long a run takes here. Without a terminal the answer is one line of standard input; none in time means the default.
"""

import contextlib
import functools
import os
import select
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console as RichConsole
from rich.table import Table

from engine import events
from engine.checkpoint.folder import CURRENT
from engine.config import CONFIGS, Preset, TrainConfig, load_preset, preset_files
from engine.config.footprint import Footprint
from engine.device import machine
from engine.errors import PresetError, first_line
from engine.formatting import count, duration
from engine.screen.conversation import Conversation
from engine.screen.dialog import ask, say
from engine.screen.exporting import export
from engine.screen.streams import OUTPUT
from engine.screen.text import literal
from model.config import AuxiliaryConfig, ModelConfig
from model.snapshot import SnapshotError
from model.snapshot import read as read_snapshot
from model.transformer import TransformerLM
from sources.config import DataConfig, TrainBPE
from sources.registry import probe
from sources.rows.tokenizer import tokenizer_available

CHECKPOINTS = Path("checkpoints")
ANSWER_SECONDS = 10.0  # an open pipe that says nothing means the default
PROBE_SECONDS = 3.0
# Share of the bare matrix-product rate that a step reaches, for an estimate before the first run here: on a CPU as
# measured by `python -m benchmarks.overhead --share --compile`, on a GPU assumed.
TRAINING_EFFICIENCY = {
    ("cpu", "bf16"): 0.58,
    ("cpu", "fp32"): 0.87,
    ("cuda", "bf16"): 0.4,
    ("cuda", "fp32"): 0.4,
}
USUAL_VOCABULARY = 50_257  # GPT-2's, for an estimate before a tokenizer is loaded


@dataclass(frozen=True)
class Action:
    """What else than a training an answer can mean: something that is done with the model in a checkpoint folder."""

    name: str
    run: Callable[[Path], None]


ACTIONS = {"g": Action("generate", lambda folder: Conversation(folder).run()), "e": Action("export", export)}


@dataclass(frozen=True)
class MenuEntry:
    """One line of the menu. `preset` is None where its file cannot be parsed."""

    path: Path
    preset: Preset | None
    problem: str = ""  # why it cannot be trained now; empty where it can


def choose(tokens_per_run: int, checkpoint_dir: Path = CHECKPOINTS) -> dict[str, Any] | str:
    """The chosen preset's values as JSON, which travel to the other ranks, or a key of ACTIONS.

    Raises PresetError for an answer or a preset that cannot be used.
    """
    files = preset_files()
    if not files:
        where = f"{CONFIGS}/ holds no presets (looked in {Path.cwd()})"
        raise PresetError(f"{where}. Start main.py in its own folder, or write a preset.")
    asks = sys.stdin.isatty() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    chosen = _ask(files, tokens_per_run, checkpoint_dir) if asks else _read_answer(files, checkpoint_dir)
    return chosen.model_dump(mode="json", by_alias=True) if isinstance(chosen, Preset) else chosen


def may_archive(sentence: str) -> bool:
    """Asks a person whether checkpoints that do not fit may be moved away; without a terminal the answer is no."""
    question = f"{sentence}\nMove the old checkpoints to {CHECKPOINTS}/archive/ and train a new model? [y/N] "
    return sys.stdin.isatty() and (ask(question) or "").strip().lower() in ("y", "yes")


def _ask(files: list[Path], tokens_per_run: int, checkpoint_dir: Path) -> Preset | str:
    """Shows the menu and asks until the answer is a preset that parses, or a key of ACTIONS."""
    entries = read_entries(files)
    show_table(entries, tokens_per_run, checkpoint_dir)
    default = next((entry for entry in entries if entry.preset), entries[0])
    if default.problem and (other := next((entry for entry in entries if not entry.problem), None)):
        say(f"{default.path.stem} cannot be trained now: {default.problem}. Enter takes {other.path.stem} instead.")
        default = other
    offers = [f", {key} to {action.name}" for key, action in ACTIONS.items() if (checkpoint_dir / CURRENT).exists()]
    question = f"Preset by number or name{''.join(offers)} [{default.path.stem}]: "
    while (answer := (ask(question) or "").strip()) not in ACTIONS:
        try:
            return load_preset(_match(answer, files) if answer else default.path)
        except PresetError as error:
            say(str(error))
    return answer


def _read_answer(files: list[Path], checkpoint_dir: Path) -> Preset | str:
    """The answer on standard input. The default of an unattended start never depends on the network; where torchrun may
    start it again, with an input that was read already, it is the preset that was trained last."""
    answer = ""
    with contextlib.suppress(OSError, ValueError):  # closed, or nothing that can be waited for
        if select.select([sys.stdin], [], [], ANSWER_SECONDS)[0]:
            answer = sys.stdin.readline().strip()
    if answer in ACTIONS:
        return answer
    if not answer and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        answer = _saved_name(checkpoint_dir)
    path = _match(answer, files) if answer else files[0]
    say(f"Preset {path.stem}" + ("" if answer else " (the default)"))
    return load_preset(path)


def _match(answer: str, files: list[Path]) -> Path:
    """The preset file that an answer means: by file name, by number, or by the preset's name, in this order."""
    number = answer.lstrip("0")
    for found in (
        [path for path in files if answer in (path.stem, path.name)],
        [path for path in files if path.stem.split("_")[0].lstrip("0") == number and path.stem[0] != "_"],
        [path for path in files if answer == _name(path)],
    ):
        if len(found) > 1:
            names = ", ".join(path.stem for path in found)
            raise PresetError(f"{answer!r} fits several presets, {names}; give the file name of one.")
        if found:
            return found[0]
    raise PresetError(f"{answer!r} is no preset; there are {', '.join(path.stem for path in files)}.")


def _name(path: Path) -> str | None:
    with contextlib.suppress(PresetError):
        return load_preset(path).name


def read_entries(files: Iterable[Path]) -> list[MenuEntry]:
    """Parses presets, and probes their tokenizers and sources, all at the same time."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(_read_entry, files))


def show_table(entries: list[MenuEntry], tokens_per_run: int, checkpoint_dir: Path) -> None:
    """Prints the entries with what a run of `tokens_per_run` takes: at the throughput of earlier runs in
    `checkpoint_dir`, else at this machine's rate of matrix products."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        rate = measured.get(preset.name)
        if rate is None:
            rate = _training_flops(device, preset.train.precision) / model.flops_per_token()
        seconds = tokens_per_run / rate
        short = _shortage(model, preset.train, device)
        size, sources = count(model.num_parameters()), literal(", ".join(preset.data.weights()))
        state = f"[yellow]not reachable[/]: {literal(entry.problem)}" if entry.problem else "[green]reachable[/]"
        takes = f"[yellow]too large here[/]: {short}" if short else f"about {duration(seconds)}"
        table.add_row(name, size, sources, state, takes)
    RichConsole(file=OUTPUT).print(table)


def _shortage(model: TransformerLM, train: TrainConfig, device: torch.device) -> str:
    """Why a model cannot fit into this machine's memory, in words; empty where it may."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    footprint = Footprint(model.config, model.num_parameters(), 1, world_size, train.offload_optimizer)
    return footprint.shortage(train.zero_stage, machine.total_memory_each(device))


@functools.cache
def _training_flops(device: torch.device, precision: str) -> float:
    """The FLOP/s of all processes that a step reaches; `precision` is train.precision."""
    bf16 = machine.native_bf16(device) if precision == "auto" else precision == "bf16"
    processes = int(os.environ.get("WORLD_SIZE", "1")) if device.type == "cuda" else 1
    rate = machine.flops_per_second(device, torch.bfloat16 if bf16 else torch.float32)
    return processes * TRAINING_EFFICIENCY[device.type, "bf16" if bf16 else "fp32"] * rate


def measured_throughputs(checkpoint_dir: Path) -> dict[str, float]:
    """Tokens/s of the latest runs in a folder, by the preset's name: the median of the last 20 reports of each."""
    recent = events.read(checkpoint_dir, events.RECENT_BYTES)
    reports: defaultdict[str, list[float]] = defaultdict(list)
    name = "" if any(event["event"] == "run" for event in recent) else _saved_name(checkpoint_dir)
    for event in recent:
        rate = event.get("tokens_per_second")
        if event["event"] == "run":
            name = _preset_name(event.get("preset"))
        elif event["event"] == "step" and name and isinstance(rate, int | float) and rate > 0:
            reports[name].append(rate)
    return {name: median(rates[-20:]) for name, rates in reports.items()}


def _saved_name(checkpoint_dir: Path) -> str:
    """The name of the preset that was trained last, of a run so long that its beginning is not looked at."""
    snapshot = checkpoint_dir / CURRENT
    with contextlib.suppress(SnapshotError):
        if snapshot.is_file():
            return _preset_name(read_snapshot(snapshot, verify=False).preset)
    return ""


def _preset_name(preset: Any) -> str:
    name = preset.get("name") if isinstance(preset, dict) else None
    return name if isinstance(name, str) else ""


def model_without_weights(model: ModelConfig, auxiliary: AuxiliaryConfig, tokenizer: str | TrainBPE) -> TransformerLM:
    """A preset's model on the meta device, for counting."""
    with torch.device("meta"):
        vocab_size = tokenizer.train_bpe if isinstance(tokenizer, TrainBPE) else USUAL_VOCABULARY
        return TransformerLM(model, vocab_size, auxiliary)


def _read_entry(path: Path) -> MenuEntry:
    preset = None
    try:
        preset = load_preset(path)
        return MenuEntry(path, preset, _problem(preset.data))
    except PresetError as error:
        return MenuEntry(path, None, str(error))
    except Exception as error:  # whatever it is, the other presets can be chosen
        return MenuEntry(path, preset, f"it cannot be checked ({first_line(error)})")


def _problem(data: DataConfig) -> str:
    """Why a preset cannot be trained now; empty where it can."""
    if reason := tokenizer_available(data.tokenizer):
        return f"tokenizer {data.tokenizer}: {reason}"
    reasons = {spec.source_name: probe(spec, PROBE_SECONDS) for spec in data.sources}
    problem = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    return "" if None in reasons.values() else problem  # one readable source is enough
