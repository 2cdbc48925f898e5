"""What a person is asked: which preset to train, or to generate; and what an unattended start answers instead.

Only rank 0 asks. Without a terminal the answer is one line of standard input; none in time means the default.
"""

import contextlib
import select
import sys
from pathlib import Path
from typing import Any

from engine.checkpoint.folder import CURRENT
from engine.config import CONFIGS, Preset, load_preset, preset_files
from engine.errors import PresetError
from engine.formatting import count
from engine.screen.preset_table import read_entries, show_table
from engine.screen.streams import OUTPUT
from engine.screen.text import printable
from model import load

CHECKPOINTS = Path("checkpoints")
GENERATE = "g"
ANSWER_SECONDS = 10.0  # an open pipe that says nothing means the default


def choose(tokens_per_run: int, checkpoint_dir: Path = CHECKPOINTS) -> dict[str, Any] | None:
    """The chosen preset's values as JSON, which travel to the other ranks, or None to generate.

    Raises PresetError for an answer or a preset that cannot be used.
    """
    files = preset_files()
    if not files:
        raise PresetError(f"{CONFIGS}/ holds no presets; restore it from the repository, or write one.")
    preset = _ask(files, tokens_per_run, checkpoint_dir) if sys.stdin.isatty() else _read_answer(files)
    return None if preset is None else preset.model_dump(mode="json", by_alias=True)


def may_archive(sentence: str) -> bool:
    """Asks a person whether checkpoints that do not fit may be moved away; without a terminal the answer is no."""
    question = f"{sentence}\nMove the old checkpoints to {CHECKPOINTS}/archive/ and train a new model? [y/N] "
    return sys.stdin.isatty() and _line(question).strip().lower() in ("y", "yes")


def converse(checkpoint_dir: Path = CHECKPOINTS) -> None:
    """Reads prompts and streams the newest model's continuations, until an empty line or the end of input."""
    snapshot = checkpoint_dir / CURRENT
    if not snapshot.exists():
        raise PresetError(f"{snapshot} does not exist yet: train a preset first.")
    try:
        lm = load(snapshot)
    except ValueError as error:
        raise PresetError(str(error)) from None
    _say(f"{snapshot}: {count(lm.model.num_parameters())} parameters. Type a prompt; an empty line ends.")
    while prompt := _line("> "):
        for piece in lm.stream(prompt, max_new_tokens=200, temperature=0.8, top_p=0.9, no_repeat_ngram=4):
            _say(piece, end="")
        _say()


def _ask(files: list[Path], tokens_per_run: int, checkpoint_dir: Path) -> Preset | None:
    """Shows the menu and asks until the answer is a preset that parses, or None to generate."""
    entries = read_entries(files)
    show_table(entries, tokens_per_run, checkpoint_dir)
    default = next((entry for entry in entries if entry.preset), entries[0])
    if default.problem and (other := next((entry for entry in entries if not entry.problem), None)):
        _say(f"{default.path.stem} cannot be trained now: {default.problem}. Enter takes {other.path.stem} instead.")
        default = other
    offer = f", {GENERATE} to generate" if (checkpoint_dir / CURRENT).exists() else ""
    while (answer := _line(f"Preset by number or name{offer} [{default.path.stem}]: ").strip()) != GENERATE:
        try:
            return load_preset(_match(answer, files) if answer else default.path)
        except PresetError as error:
            _say(str(error))
    return None


def _read_answer(files: list[Path]) -> Preset | None:
    """The answer on standard input. The default of an unattended start never depends on the network."""
    answer = ""
    with contextlib.suppress(OSError, ValueError):  # closed, or nothing that can be waited for
        if select.select([sys.stdin], [], [], ANSWER_SECONDS)[0]:
            answer = sys.stdin.readline().strip()
    if answer == GENERATE:
        return None
    path = _match(answer, files) if answer else files[0]
    _say(f"Preset {path.stem}" + ("" if answer else " (the default)"))
    return load_preset(path)


def _match(answer: str, files: list[Path]) -> Path:
    """The preset file that an answer means: by file name, by number, or by the preset's name, in this order."""
    number = answer.lstrip("0")
    for found in (
        [path for path in files if answer in (path.stem, path.name)],
        [path for path in files if path.stem.split("_")[0].lstrip("0") == number],
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


def _say(text: str = "", end: str = "\n") -> None:
    print(printable(text), end=end, file=OUTPUT, flush=True)


def _line(prompt: str) -> str:
    """A line from the terminal; its end counts as an empty line."""
    try:
        return input(printable(prompt))
    except EOFError:
        return ""
