"""The menu for a terminal that only prints, such as TERM=dumb: the presets as a table, and a line for the answer."""

import shutil

from rich.console import Console as RichConsole
from rich.console import RenderableType

from engine.checkpoint.names import CURRENT
from engine.errors import PresetError
from engine.screen.dialog import ask, say
from engine.screen.menu.answers import ACTIONS, QUIT, Choice, match, values
from engine.screen.menu.details import details, open_report
from engine.screen.menu.entries import Menu
from engine.screen.menu.new_preset import Question, Values, new_preset
from engine.screen.menu.speed import Measurement
from engine.screen.menu.states import StateChecks
from engine.screen.menu.table import plain_screen
from engine.screen.streams import OUTPUT

CHECK_SECONDS = 15.0  # until what is not known yet is left so
QUESTIONS = {"d": "for details", "n": "for a new preset", "r": "for the report", QUIT: "to quit"}


def ask_plainly(menu: Menu) -> Choice:
    """Show the menu and ask until the answer is a preset that parses, a key of ACTIONS, or QUIT."""
    measurement = None if menu.is_measured or menu.in_use else Measurement(menu.set_machine)
    StateChecks(menu.entries).wait(CHECK_SECONDS)
    if measurement is not None:
        measurement.wait()
    show(plain_screen(menu))
    default = menu.entries[menu.default]
    first = next((entry for entry in menu.entries if entry.preset), menu.entries[0])
    if menu.lineage_entry is None and first.problem and first is not default:
        say(f"{first.path.stem} cannot be trained now: {first.problem}. Enter takes {default.path.stem} instead.")
    offers = {**QUESTIONS, **{key: f"to {name}" for key, name in ACTIONS.items() if (menu.folder / CURRENT).exists()}}
    question = f"Preset by number or name, {', '.join(f'{key} {what}' for key, what in offers.items())}"
    while True:
        answer = (ask(f"{question} [{default.path.stem}]: ") or "").strip()
        if answer in ACTIONS or answer == QUIT:
            return answer
        word, _, name = answer.partition(" ")
        try:
            file = match(name.strip(), menu.files) if word in QUESTIONS and name.strip() else default.path
            if word == "r":
                say(open_report(menu.folder))
            elif word == "d":
                show(details(menu, menu.files.index(file)))
            elif word == "n":
                default = menu.add(new_preset(file, ask_line))
            else:
                return values(match(answer, menu.files) if answer else default.path)
        except PresetError as error:
            say(str(error))
        except (EOFError, KeyboardInterrupt):
            say("No preset was written.")


def ask_line(question: Question, values: Values) -> str:
    """Ask until the answer can be used. Raises EOFError where the input ends."""
    while True:
        answer = ask(f"{question.text} [{question.default}]: ")
        if answer is None:
            raise EOFError
        if not (problem := question.problem(values, answer)):
            return answer
        say(problem)


def show(content: RenderableType) -> None:
    columns, rows = shutil.get_terminal_size()  # rich takes a dumb terminal for one of 80 columns
    RichConsole(file=OUTPUT, width=columns, height=rows).print(content)
