"""What a person is asked: which preset to train, or to generate; and what an unattended start answers instead.

Rank 0 alone asks. The answer travels to the other ranks as one JSON string, the whole preset in it, so that they need
not see the same files. Without a terminal the answer is one line of standard input; none in time means the default.
"""

import os
import select
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from engine import events
from engine.checkpoint.folder import CURRENT
from engine.config import CONFIGS, Preset, load_preset, parse_preset, preset_files
from engine.device import machine
from engine.device.ranks import Ranks
from engine.errors import PresetError
from engine.screen.console import Output, count, duration, printable
from engine.train import TOKENS_PER_RUN
from model import load
from model.transformer import TransformerLM
from sources.config import TrainBPE
from sources.registry import probe
from sources.rows.tokenizer import tokenizer_available

CHECKPOINTS = Path("checkpoints")
GENERATE = "g"
ANSWER_SECONDS = 10.0  # an open pipe that says nothing means the default
PROBE_SECONDS = 3.0
# Share of the bare matrix-product rate that a step reaches, for an estimate before the first run here: measured
# on a CPU by benchmarks/overhead.py, assumed on a GPU.
TRAINING_EFFICIENCY = {"cpu": 0.7, "cuda": 0.4}
USUAL_VOCABULARY = 50_257  # GPT-2's, for an estimate before a tokenizer is loaded


@dataclass(frozen=True)
class Entry:
    """One line of the menu: a preset that can be used, or why it cannot."""

    path: Path
    preset: Preset | None
    problem: str | None  # the sentence of a preset that cannot be parsed
    unreachable: str | None  # why its data or tokenizer cannot be had now


def choose(ranks: Ranks, checkpoint_dir: Path = CHECKPOINTS) -> Preset | None:
    """The preset to train on every rank, or None to generate. Raises PresetError for an unusable answer or preset."""

    def ask() -> dict | None:
        preset = _ask(checkpoint_dir)
        return None if preset is None else preset.model_dump(mode="json", by_alias=True)

    answer = ranks.on_main(ask)
    return None if answer is None else parse_preset(answer)


def may_archive(sentence: str) -> bool:
    """Asks a person whether a lineage that does not fit may be moved away; nobody at a terminal means no."""
    if not sys.stdin.isatty():
        return False
    _say(sentence)
    return _line("Move the old lineage to checkpoints/archive/ and begin a new one? [y/N] ").strip().lower() in (
        "y",
        "yes",
    )


def converse(snapshot: Path) -> None:
    """Reads prompts and streams the model's continuation, until an empty line or the end of input."""
    if not snapshot.exists():
        raise PresetError(f"{snapshot} is not there yet: train a preset first.")
    try:
        lm = load(snapshot)
    except ValueError as error:
        raise PresetError(str(error)) from None
    _say(f"{snapshot}: {count(lm.model.num_parameters())} parameters. Type a prompt; an empty line ends.")
    while prompt := _line("> "):
        for piece in lm.stream(prompt, max_new_tokens=200, temperature=0.8, top_p=0.9, no_repeat_ngram=4):
            _say(piece, end="")
        _say()


def _ask(checkpoint_dir: Path) -> Preset | None:
    files = preset_files()
    if not files:
        raise PresetError(f"{CONFIGS}/ holds no presets; restore it from the repository, or write one.")
    if not sys.stdin.isatty():
        return _unattended(files)
    entries = _entries(files)
    default = next((e for e in entries if e.preset is not None), entries[0])
    _show(entries, checkpoint_dir)
    if default.unreachable and (offline := next((e for e in entries if e.preset and not e.unreachable), None)):
        _say(
            f"{default.path.stem} cannot be trained now: {default.unreachable}. "
            f"Enter takes {offline.path.stem} instead."
        )
        default = offline
    while True:
        offer = ", g to generate" if (checkpoint_dir / CURRENT).exists() else ""
        answer = _line(printable(f"Preset by number or name{offer} [{default.path.stem}]: ")).strip()
        if answer == GENERATE:
            return None
        try:
            return load_preset(_match(answer, files) if answer else default.path)
        except PresetError as error:
            _say(str(error))


def _unattended(files: list[Path]) -> Preset | None:
    """The answer on standard input. What an unattended run trains on never depends on the network."""
    answer = ""
    try:
        if select.select([sys.stdin], [], [], ANSWER_SECONDS)[0]:
            answer = sys.stdin.readline().strip()
    except (OSError, ValueError):  # closed, or nothing that can be waited for
        pass
    if answer == GENERATE:
        return None
    path = _match(answer, files) if answer else files[0]
    _say(f"Preset {path.stem}" + ("" if answer else " (the default)"))
    return load_preset(path)


def _match(answer: str, files: list[Path]) -> Path:
    """The preset file that an answer names: by its number, its file name or its name."""

    def has_number(path: Path) -> bool:
        number = path.stem.split("_")[0]
        return answer == number or (answer.isdecimal() and number.isdecimal() and int(answer) == int(number))

    def has_name(path: Path) -> bool:
        try:
            return load_preset(path).name == answer
        except PresetError:
            return False

    for fits in (lambda path: answer in (path.stem, path.name), has_number, has_name):
        found = [path for path in files if fits(path)]
        if len(found) > 1:
            several = ", ".join(path.stem for path in found)
            raise PresetError(f"{answer!r} may be each of {several}; give the file name of one.")
        if found:
            return found[0]
    raise PresetError(f"{answer!r} is no preset; there are {', '.join(path.stem for path in files)}.")


def _entries(files: list[Path]) -> list[Entry]:
    """Parses all presets, and looks at the same time whether their data and tokenizers can be had."""
    parsed: list[tuple[Path, Preset | None, str | None]] = []
    for path in files:
        try:
            parsed.append((path, load_preset(path), None))
        except PresetError as error:
            parsed.append((path, None, str(error)))
    with ThreadPoolExecutor(max_workers=16) as pool:
        unreachable = list(pool.map(lambda entry: _unreachable(entry[1]) if entry[1] else None, parsed))
    return [Entry(path, preset, problem, why) for (path, preset, problem), why in zip(parsed, unreachable, strict=True)]


def _unreachable(preset: Preset) -> str | None:
    """Why a preset cannot be trained now, or None. One source that can be read is enough; the tokenizer must be."""
    if reason := tokenizer_available(preset.data.tokenizer):
        return f"tokenizer {preset.data.tokenizer}: {reason}"
    reasons = {spec.source_name: probe(spec, PROBE_SECONDS) for spec in preset.data.sources}
    if all(reasons.values()):
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return None


def _show(entries: list[Entry], checkpoint_dir: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if machine.native_bf16(device) else torch.float32
    rate = machine.flops_per_second(device, dtype)
    table = Table(title=f"Presets in {CONFIGS}/  ({machine.describe(device)})", title_justify="left", box=None)
    for heading in ("preset", "parameters", "sources", "data", "a run here"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "preset")  # a name is what is typed
    for entry in entries:
        if entry.preset is None:
            table.add_row(_cell(entry.path.stem), "", f"[red]cannot be used[/]: {_cell(entry.problem)}", "", "")
            continue
        model = _on_paper(entry.preset)
        seconds = _seconds_per_run(entry.preset, model, rate, checkpoint_dir)
        names = ", ".join(spec.source_name for spec in entry.preset.data.sources)
        state = "[green]reachable[/]" if entry.unreachable is None else "[yellow]not reachable[/]"
        cells = (_cell(entry.path.stem), count(model.num_parameters()), _cell(names))
        table.add_row(*cells, state, f"about {duration(seconds)}")
    RichConsole(file=Output()).print(table)


def _cell(text: str) -> str:
    """A name or message as it is, not as markup."""
    return escape(printable(text))


def _on_paper(preset: Preset) -> TransformerLM:
    """The preset's model without memory for its weights, for counting."""
    spec = preset.data.tokenizer
    with torch.device("meta"):
        vocab_size = spec.train_bpe if isinstance(spec, TrainBPE) else USUAL_VOCABULARY
        return TransformerLM(preset.model, vocab_size, preset.auxiliary)


def _seconds_per_run(preset: Preset, model: TransformerLM, rate: float, checkpoint_dir: Path) -> float:
    """From this preset's last measured speed here, else from the machine's rate of matrix products."""
    measured: list[float] = []
    ours = False
    for event in events.read(checkpoint_dir):
        if event["event"] == "run":
            ours = event.get("preset", {}).get("name") == preset.name
        elif event["event"] == "step" and ours and event.get("tokens_per_second"):
            measured.append(event["tokens_per_second"])
    processes = max(1, int(os.environ.get("WORLD_SIZE", "1"))) if torch.cuda.is_available() else 1
    efficiency = TRAINING_EFFICIENCY["cuda" if torch.cuda.is_available() else "cpu"]
    speed = median(measured[-20:]) if measured else processes * efficiency * rate / model.flops_per_token()
    return TOKENS_PER_RUN / speed


def _say(text: str = "", end: str = "\n") -> None:
    print(printable(text), end=end, file=Output(), flush=True)


def _line(prompt: str) -> str:
    """A line from the terminal; its end counts as an empty line."""
    try:
        return input(prompt)
    except EOFError:
        return ""
