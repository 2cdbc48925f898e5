"""What an answer means, and the answer of a start that nobody watches: one line of standard input, or the default."""

import contextlib
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import Preset, load_preset
from engine.errors import PresetError
from engine.screen.dialog import say
from engine.screen.menu.lineage import read_lineage

ANSWER_SECONDS = 10.0  # an open pipe that says nothing means the default
ACTIONS = {"g": "generate", "e": "export"}  # what else than a training is chosen, by its key
QUIT = "q"
WATCH = "watch"  # a run that another process trains

Choice = dict[str, Any] | str  # a preset's values as JSON, which travel to the other ranks, or a key


def values(preset_file: Path) -> dict[str, Any]:
    """The values of a preset as JSON. Raises PresetError for one that cannot be used."""
    chosen: Preset = load_preset(preset_file)
    return chosen.model_dump(mode="json", by_alias=True)


def starts_again() -> bool:
    """Whether torchrun has started this process in place of one that was lost; then nobody is asked."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def read_answer(files: Sequence[Path], folder: Path) -> Choice:
    """The answer on standard input. The default of an unattended start is the first preset: it depends neither on the
    network nor on what the checkpoint folder holds. Where torchrun may start it again, with an input that was read
    already, the default is the preset that `folder` was trained with. Raises PresetError."""
    answer = ""
    with contextlib.suppress(OSError, ValueError):  # closed, or nothing that can be waited for
        if select.select([sys.stdin], [], [], ANSWER_SECONDS)[0]:
            answer = sys.stdin.readline().strip()
    if answer in ACTIONS:
        return answer
    if not answer and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        lineage = read_lineage(folder)
        answer = lineage.preset if lineage else ""
    path = match(answer, files) if answer else files[0]
    say(f"Preset {path.stem}" + ("" if answer else " (the default)"))
    return values(path)


def match(answer: str, files: Sequence[Path]) -> Path:
    """The preset file that an answer means: by file name, by number, or by the preset's name, in this order.

    Raises PresetError for an answer that means none, or several.
    """
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
    return None
