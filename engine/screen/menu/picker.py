"""The menu as a picker: arrow keys move, Enter trains, a letter does what the last line says; numbers and names can be
typed.

Whether data can be reached, and how fast this machine is, is filled in while it is on the screen.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, get_app
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.validation import ValidationError, Validator

from engine.checkpoint.names import CURRENT
from engine.control import early
from engine.control.early import nothing_saved
from engine.errors import Interrupted, PresetError
from engine.screen.live.watch import can_watch
from engine.screen.menu.answers import ACTIONS, QUIT, WATCH, Choice, match, values
from engine.screen.menu.details import details_screen, open_report
from engine.screen.menu.entries import Menu, MenuEntry
from engine.screen.menu.new_preset import Question, Values
from engine.screen.menu.table import View, picker_screen
from engine.screen.text import printable

NEW = "n"  # the result that asks for a new preset
NAME_SECONDS = 0.5  # until a letter that a preset's name begins with, too, is taken for itself
ESCAPE_SECONDS = 0.1  # until an escape character is taken for itself


class Picker:
    """One showing of the menu; `run` returns what was chosen, or NEW with the preset to start from selected."""

    def __init__(self, menu: Menu, selected: int | None = None, message: str = ""):
        self.menu = menu
        self.view = View(menu.default if selected is None else selected, message=message)
        self._moved = selected is not None  # by a person; until then what Enter takes follows what is found out
        self._app: Application[Choice] = Application(
            layout=Layout(Window(FormattedTextControl(self._draw, show_cursor=False), always_hide_cursor=True)),
            key_bindings=self._bindings(),
            full_screen=True,
            output=_output(),
        )
        self._app.timeoutlen, self._app.ttimeoutlen = NAME_SECONDS, ESCAPE_SECONDS

    def run(self) -> Choice:
        """Show the menu until something is chosen. Raises Interrupted at Ctrl-C."""
        with ended_by_signals(self._app):
            return self._app.run(pre_run=self._settle)

    def refresh(self) -> None:
        """Called by any thread when something has been found out."""
        if (loop := self._app.loop) is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """Follow what has been found out; an answer that waited for it is taken."""
        if self._app.is_done:
            return
        if not self._moved and self.view.detail_line is None:
            self.view.selected = self.menu.default
        if self.view.waits and all(entry.checked for entry in self.menu.entries):
            self._take(self.view.selected)
        self._app.invalidate()

    def _take(self, index: int) -> None:
        """End with a preset, or say why it cannot be used; while a run trains in the folder, end to watch it."""
        self.view.waits = False
        if self.menu.in_use and can_watch():
            self._app.exit(result=WATCH)
            return
        try:
            self._app.exit(result=values(self.menu.entries[index].path))
        except PresetError as error:
            self.view.message = str(error)

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()
        for names, move in (
            (("up",), lambda at, last: at - 1),
            (("down",), lambda at, last: at + 1),
            (("home", "pageup"), lambda at, last: 0),
            (("end", "pagedown"), lambda at, last: last),
        ):
            for name in names:
                keys.add(name)(self._mover(move))
        for name in ("enter", "c-j"):  # the latter is what was typed before the terminal was in raw mode
            keys.add(name)(lambda event: self._enter())
        keys.add("backspace")(lambda event: self._type(self.view.typed[:-1]))
        keys.add("escape")(lambda event: self._type(""))
        keys.add("/")(lambda event: self._type(self.view.typed))  # what follows is a name, whatever it begins with
        for name in ("c-c", "<sigint>"):
            keys.add(name)(lambda event: _interrupt(event.app, signal.SIGINT))
        keys.add("c-d")(lambda event: event.app.exit(result=QUIT))
        for key in (Keys.Any, Keys.BracketedPaste):
            keys.add(key)(lambda event: self._type(self.view.typed + "".join(filter(str.isprintable, event.data))))
        starts = [start for entry in self.menu.entries for start in _names(entry)]
        for letter in "dnger" + QUIT:
            keys.add(letter)(lambda event: self._letter(event.data))
            for second in {start[1] for start in starts if len(start) > 1 and start[0] == letter}:
                keys.add(letter, second)(lambda event: self._type(self.view.typed + _data(event)))
        return keys

    def _mover(self, move: Callable[[int, int], int]) -> Callable[[KeyPressEvent], None]:
        def moved(event: KeyPressEvent) -> None:
            if self.view.detail_line is not None:
                self.view.detail_line = max(0, move(self.view.detail_line, 10**6))
                return
            last = len(self.menu.entries) - 1
            self.view.selected, self._moved = min(last, max(0, move(self.view.selected, last))), True
            self.view.typed = self.view.message = ""
            self.view.waits = False

        return moved

    def _type(self, text: str) -> None:
        """Select what is typed as soon as it can mean only one preset."""
        self.view.detail_line, self.view.typed, self.view.message, self.view.waits = None, text, "", False
        entries = enumerate(self.menu.entries)
        found = [n for n, entry in entries if any(name.startswith(text) for name in (*_names(entry), _number(entry)))]
        if text and len(found) == 1:
            self.view.selected, self._moved = found[0], True

    def _letter(self, letter: str) -> None:
        if self.view.typed:
            self._type(self.view.typed + letter)
            return
        self.view.message, self.view.waits = "", False
        if self.view.detail_line is not None and letter in ("d", QUIT):
            self.view.detail_line = None
        elif letter == "d":
            self.view.detail_line, self._moved = 0, True
        elif letter == "r":
            self.view.message = open_report(self.menu.folder)
        elif letter in ACTIONS and not (self.menu.folder / CURRENT).exists():
            self.view.message = f"{self.menu.folder / CURRENT} does not exist yet: train a preset first."
        else:
            self._app.exit(result=letter)

    def _enter(self) -> None:
        if self.view.detail_line is not None:
            self.view.detail_line = None
        elif self.view.typed:
            try:
                self._take(self.menu.files.index(match(self.view.typed, self.menu.files)))
            except PresetError as error:
                self.view.typed, self.view.message = "", str(error)
        elif self._moved or self.menu.lineage_entry is not None or all(e.checked for e in self.menu.entries):
            self._take(self.view.selected)
        else:
            self.view.waits = True

    def _draw(self) -> ANSI:
        size = get_app().output.get_size()
        draw = picker_screen if self.view.detail_line is None else details_screen
        return ANSI("\n".join(draw(self.menu, self.view, size.columns, size.rows)))


def ask_typing(question: Question, before: Values) -> str:
    """An answer that is checked while it is typed. Raises EOFError or KeyboardInterrupt where the person gives up."""

    class Checked(Validator):
        def validate(self, document: Document) -> None:
            if problem := question.problem(before, document.text):
                raise ValidationError(message=printable(problem))

    def note() -> str:
        text = session.default_buffer.text
        return "" if question.problem(before, text) else question.note(before, text)

    session: PromptSession[str] = PromptSession(output=_output())
    with ended_by_signals(session.app):
        return session.prompt(
            f"{printable(question.text)} [{printable(question.default)}]: ",
            validator=Checked(),
            validate_while_typing=True,
            rprompt=note if question.shows_size else None,  # a toolbar needs to know where the cursor is
        )


@contextlib.contextmanager
def ended_by_signals(app: Application[Any]) -> Iterator[None]:
    """Let a signal end `app` with Interrupted. Raised within one of its callbacks, the exception would be lost."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if app.loop is None or not app.is_running:
            raise Interrupted(number, nothing_saved(number))
        app.loop.call_soon_threadsafe(_interrupt, app, number)

    with early.handlers(handle):
        yield


def _interrupt(app: Application[Any], number: int) -> None:
    if not app.is_done:
        app.exit(exception=Interrupted(number, nothing_saved(number)))


def _data(event: KeyPressEvent) -> str:
    return "".join(key.data for key in event.key_sequence)


def _number(entry: MenuEntry) -> str:
    """The number in an entry's file name as it may be typed, without zeros before it."""
    return entry.path.stem.split("_")[0].lstrip("0")


def _names(entry: MenuEntry) -> list[str]:
    return [entry.path.stem, *([entry.preset.name] if entry.preset else [])]


def _output() -> Vt100_Output:
    """The terminal; it is not asked where its cursor is, which not every one answers."""
    output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
    output.enable_cpr = False
    return output
