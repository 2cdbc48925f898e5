"""What a person is asked: which preset to train, or what to do with the model that is there; and what an unattended
start answers instead.

Only rank 0 asks. At a terminal a picker shows of each preset whether it can be trained now, how large its model is and
how long a run takes here; a terminal that only prints shows the same as a table. Without a terminal the answer is one
line of standard input; none in time means the first preset, or, where torchrun may start it again, the one that was
trained last. Nothing here imports torch.
"""

import sys
from pathlib import Path

from engine.config import CONFIGS, preset_files
from engine.control.early import interruptible
from engine.control.exit import end
from engine.device import host
from engine.errors import PresetError, RunError
from engine.screen.dialog import ask, moves_the_cursor
from engine.screen.live import watch
from engine.screen.machines import Machine
from engine.screen.menu.answers import ACTIONS, QUIT, WATCH, Choice, read_answer, starts_again
from engine.screen.menu.entries import Menu
from engine.screen.menu.new_preset import new_preset
from engine.screen.menu.picker import NEW, Picker, ask_typing
from engine.screen.menu.plain import ask_plainly
from engine.screen.menu.speed import Measurement
from engine.screen.menu.states import StateChecks

__all__ = ["ACTIONS", "CHECKPOINTS", "QUIT", "Choice", "choose", "choose_for_all", "may_archive"]

CHECKPOINTS = Path("checkpoints")


def choose_for_all(tokens_per_run: int) -> Choice | RunError:
    """What rank 0 is to do. Alone, it ends the process at QUIT or after watching a run, and raises RunError; with
    several ranks QUIT and errors are returned, since the others wait and must be told. A signal raises Interrupted."""
    alone = host.processes_in_all() == 1
    try:
        with interruptible():
            choice = choose(tokens_per_run)
    except RunError as error:
        if alone:
            raise
        return error
    if choice == WATCH:
        watch.show(CHECKPOINTS)
    if choice in (QUIT, WATCH) and alone:
        end(0)
    return choice


def choose(tokens_per_run: int, checkpoint_dir: Path = CHECKPOINTS) -> Choice:
    """The chosen preset's values as JSON, a key of ACTIONS, QUIT, or WATCH.

    Raises PresetError for an answer or a preset that cannot be used, and Interrupted at Ctrl-C in the picker.
    """
    files = preset_files()
    if not files:
        where = f"{CONFIGS}/ holds no presets (looked in {Path.cwd()})"
        raise PresetError(f"{where}. Start main.py in its own folder, or write a preset.")
    if not sys.stdin.isatty() or starts_again():
        return read_answer(files, checkpoint_dir)
    menu = Menu.read(files, checkpoint_dir, tokens_per_run)
    return _pick(menu) if moves_the_cursor() else ask_plainly(menu)


def may_archive(sentence: str) -> bool:
    """Asks a person whether checkpoints that do not fit may be moved away; without a terminal the answer is no."""
    question = f"{sentence}\nMove the old checkpoints to {CHECKPOINTS}/archive/ and train a new model? [y/N] "
    return sys.stdin.isatty() and (ask(question) or "").strip().lower() in ("y", "yes")


def _pick(menu: Menu) -> Choice:
    """Show the picker, and again after a new preset, until something else is chosen."""
    picker = Picker(menu)

    def refresh() -> None:
        picker.refresh()

    def set_machine(machine: Machine) -> None:
        menu.set_machine(machine)
        refresh()

    measurement = None if menu.is_measured or menu.in_use else Measurement(set_machine)  # not beside a run
    try:
        StateChecks(menu.entries, refresh)
        while (choice := picker.run()) == NEW:
            entry, message = menu.entries[picker.view.selected], "No preset was written."
            try:
                entry = menu.add(new_preset(entry.path, ask_typing))
                message = f"{entry.path} was written."
            except PresetError as error:
                message = str(error)
            except (EOFError, KeyboardInterrupt):
                pass  # the person has given up
            picker = Picker(menu, menu.entries.index(entry), message)
            StateChecks([entry], refresh)
    finally:
        if measurement is not None:
            measurement.stop()
    return choice
