"""The menu's `e`: a snapshot to a folder for transformers, or to a GGUF file for llama.cpp.

At a terminal, an answer that cannot be used is asked for again. Without one each answer is a line of standard input;
an empty line and the end of input mean the default.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import Interrupted, PresetError
from engine.screen import snapshots
from engine.screen.dialog import ask, interruptible, say
from model import LanguageModel
from model.export import dtypes
from sources.config import builtin_licences

EXPORTS = Path("exports")
Result = TypeVar("Result")


def export(folder: Path) -> None:
    """Ask which snapshot of `folder` to export, to what and in which number format; say what was written.

    Raises PresetError for an answer that cannot be used, without a terminal, and Interrupted at Ctrl-C.
    """
    with interruptible():
        try:
            lm = _open_snapshot(folder)
            say(_answered(lambda: _export(lm)))
        except EOFError:
            say("\nNothing was exported.")
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT, "The export was stopped; nothing half written is left.") from None


def _open_snapshot(folder: Path) -> LanguageModel:
    """The model of the only snapshot, or of the one that a person chooses; on the CPU, since nothing is computed."""
    there = snapshots.names(folder)
    if len(there) < 2:
        return snapshots.open_model(snapshots.require(folder, *there), "cpu")
    question = f"Snapshot, one of {', '.join(there)}"
    return _answered(lambda: snapshots.open_model(snapshots.require(folder, _answer(question, there[0])), "cpu"))


def _export(lm: LanguageModel) -> str:
    """Ask for the target and its number format, and write it. Raises ValueError where that cannot be."""
    default = _free_target(lm.preset)
    question = "Export to a folder for transformers, or to a name that ends in .gguf for llama.cpp"
    target = Path(os.path.expanduser(_answer(question, str(default))))
    formats = dtypes(target)
    dtype = _answer(f"Number format, one of {', '.join(formats)}", formats[0]).lower()
    sources = (lm.preset.get("data") or {}).get("sources") or []
    with _exports_folder(target):
        return lm.export(target, dtype=dtype, licences=builtin_licences(sources)).summary()


def _answered(step: Callable[[], Result]) -> Result:
    """What `step` returns, which asks for something; at a terminal once it gets answers that can be used."""
    while True:
        try:
            return step()
        except (ValueError, PresetError) as error:
            if not sys.stdin.isatty():
                raise PresetError(str(error)) from None
            say(str(error))


def _answer(question: str, default: str) -> str:
    """The answer to a question. Raises EOFError where a terminal's input ends: nobody would be there to ask again."""
    line = ask(f"{question} [{default}]: ")
    if line is None and sys.stdin.isatty():
        raise EOFError
    return (line or "").strip() or default


def _free_target(preset: Mapping[str, Any]) -> Path:
    """The first free name of exports/NAME, exports/NAME-2 and so on, NAME being the preset's."""
    name = re.sub(r"[^\w+-]+", "-", str(preset.get("name") or "")).strip("-")[:100] or "model"
    target, number = EXPORTS / name, 1
    while os.path.lexists(target):
        number += 1
        target = EXPORTS / f"{name}-{number}"
    return target


@contextlib.contextmanager
def _exports_folder(target: Path) -> Iterator[None]:
    """Make the folder of the default target, which an export that fails does not leave behind."""
    made = False
    if target.parent == EXPORTS:
        with contextlib.suppress(OSError):  # which the export says
            EXPORTS.mkdir()
            made = True
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                EXPORTS.rmdir()
        raise
