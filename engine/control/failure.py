"""An exception that nobody expected: what was being done, the error, and where its whole traceback is."""

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import storage
from engine.errors import first_line
from engine.run_log import FILE_NAME
from sources.redact import redact

STATUS = 1
ROOT = Path(__file__).resolve().parents[2]
# What is being done where the code of a file runs; of several in a traceback the innermost counts.
ACTIVITIES = {
    "main.py": "starting",
    "engine/screen/menu/": "showing the menu",
    "engine/screen/conversation.py": "generating text",
    "engine/screen/exporting.py": "exporting a snapshot",
    "engine/training.py": "starting the run",
    "engine/run/setup.py": "setting up the run",
    "engine/run/resume.py": "reading the checkpoint",
    "engine/checks/preflight.py": "checking what the run needs",
    "engine/data/opening.py": "opening the sources and the tokenizer",
    "engine/data/validation.py": "collecting the validation set",
    "engine/data/batches.py": "reading text",
    "engine/device/microbatch.py": "measuring micro-batches",
    "engine/device/compiling.py": "compiling the model",
    "engine/run/warmup.py": "making the warm-up step",
    "engine/run/trainer.py": "training",
    "engine/run/step.py": "making an optimizer step",
    "engine/run/evaluation.py": "evaluating",
    "engine/run/samples.py": "writing a sample",
    "engine/checkpoint/background.py": "saving a checkpoint",
}


def activity(error: BaseException) -> str:
    """What was being done when `error` was raised, by the files of its traceback."""
    doing = "running"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            name = path.relative_to(ROOT).as_posix()
            doing = next((what for start, what in ACTIVITIES.items() if name.startswith(start)), doing)
    return doing


def report(error: Exception, folder: Path, show: Callable[[str], None], rank: int = 0) -> int:
    """Append the traceback to run.log in `folder`, and show two or three sentences; return the exit status.

    Notes of the error (add_note) say what was saved. Where the file cannot be written, the traceback is shown.
    """
    doing = activity(error)
    whole = redact("".join(traceback.format_exception(error)))
    head = f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}, {doing}\n"
    where = f"The traceback is in {folder / FILE_NAME}."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with storage.open_regular(folder / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, follow=False) as file:
            file.write((head + whole).encode("utf-8", "replace"))
    except OSError as problem:
        where = f"{folder / FILE_NAME} cannot be written ({storage.os_error_reason(problem)}):\n{whole}"
    notes = "".join(f"{note} " for note in getattr(error, "__notes__", []))
    show(redact(f"a fault while {doing}: {type(error).__name__}: {first_line(error)}. {notes}{where}"))
    return STATUS
