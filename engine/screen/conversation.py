"""The menu's `g`: prompts in, continuations out, with settings in lines such as `/temperature 0.7`.

Ctrl-C ends an answer; an empty line, /quit or the end of input ends the conversation.
"""

import contextlib
import difflib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import PresetError
from engine.screen import snapshots
from engine.screen.dialog import ask, interruptible, say
from model import Generation
from model.decoding.settings import GenerationSettings

DEFAULTS: dict[str, Any] = {"max_new_tokens": 200, "temperature": 0.8, "top_p": 0.9, "no_repeat_ngram": 4}
SETTINGS = {
    "max_new_tokens": "tokens of an answer, at most",
    "temperature": "0: always the likeliest token; higher: more varied; adaptive: by how uncertain the model is",
    "temperature_offset": "of an adaptive temperature: above 0 more varied, below 0 less",
    "top_p": "draw from the likeliest tokens that add up to this share",
    "top_k": "draw from this many of the likeliest tokens; 0: all",
    "min_p": "leave out tokens below this share of the likeliest one's probability",
    "repetition_penalty": "above 1: tokens that occurred become less likely",
    "no_repeat_ngram": "never the same n tokens in a row twice; 0: off",
    "stop": 'an answer ends before this text, such as "\\n"',
    "speculate": "true: write with the model's drafts, the same texts; auto: where that is faster; typical: bolder",
    "plan": "true, with temperature 0: weigh several tokens by what follows them where the model is uncertain",
    "seed": "the same answer each time; none: another one each time",
}
SHOWN_CHOICES, SHOWN_BEFORE = 3, 6  # of a plan: places, and tokens before each
COMMANDS = {
    "help": "this list",
    "settings": "the settings as they are now",
    "reset": "the settings as they were at the start",
    "model": "the snapshots here, or another one: /model lm_prev.pth",
    "quit": "end; so does an empty line",
}


class Conversation:
    """One model at a time from `folder`, and the settings of its answers."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = dict(DEFAULTS)
        self._model = snapshots.open_model(snapshots.require(folder))

    def run(self) -> None:
        """Ask, and answer, until there is nothing more."""
        say("Type a prompt, and Enter; /help shows what else there is, an empty line ends.")
        with interruptible(), _line_editing():
            while True:
                try:
                    line = _read_line()
                    if line is None or line.strip() == "/quit":
                        return
                    if line.startswith("/") and not line.startswith("//"):
                        say(self._command(line[1:].strip()))
                    else:
                        self._answer(line.removeprefix("/"))
                except KeyboardInterrupt:
                    say("\n(an empty line ends)")

    def _answer(self, prompt: str) -> None:
        """Stream a continuation; Ctrl-C ends it."""
        settings = dict(self.settings)
        pieces = self._model.stream(prompt, settings.pop("max_new_tokens"), **settings)
        begin, generation = time.perf_counter(), None
        with warnings.catch_warnings(record=True) as notes:
            try:
                while generation is None:
                    try:
                        say(next(pieces), end="")
                    except StopIteration as end:
                        generation = end.value
            except KeyboardInterrupt:
                pieces.close()
                say("\n(stopped)")
                return
        tokens, seconds = len(generation.tokens), time.perf_counter() - begin
        steps = tokens - sum(generation.drafted)
        drafts = f", {tokens / steps:.1f} a step of the model" if steps < tokens else ""
        say(f"\n({tokens:,} tokens, {tokens / seconds:,.0f} a second{drafts})")
        if generation.plan is not None:
            for line in plan_tree(generation, self._model.tokenizer.decode):
                say(line)
        for note in notes:
            say(f"({note.message})")

    def _command(self, line: str) -> str:
        """Carry out a command or a setting; returns what to say."""
        name, _, value = line.partition(" ")
        value = value.strip()
        if name == "help":
            rows = {**COMMANDS, **{f"{setting} VALUE": meaning for setting, meaning in SETTINGS.items()}}
            return (
                "\n".join(f"  /{name:<26} {meaning}" for name, meaning in rows.items()) + "\n  //...  a prompt with /"
            )
        if name == "settings":
            return ", ".join(f"{setting} {self.settings.get(setting)!r}" for setting in SETTINGS)
        if name == "reset":
            self.settings = dict(DEFAULTS)
            return "The settings are as they were at the start."
        if name == "model":
            return self._choose(value)
        if name in SETTINGS:
            return self._set(name, value)
        near = difflib.get_close_matches(name, [*COMMANDS, *SETTINGS], 1)
        return f"There is no /{name}{f'; did you mean /{near[0]}?' if near else ': /help lists what there is.'}"

    def _set(self, name: str, value: str) -> str:
        if not value:
            return f"/{name} is {self.settings.get(name)!r}: {SETTINGS[name]}."
        try:
            parsed = None if value == "none" else json.loads(value)
        except ValueError:
            parsed = value.encode().decode("unicode_escape") if name == "stop" else value
        changed = {**self.settings, name: parsed}
        if parsed is None:
            del changed[name]
        try:
            GenerationSettings.of(changed.get("max_new_tokens", DEFAULTS["max_new_tokens"]), _without_length(changed))
        except (ValueError, TypeError) as error:
            return str(error)
        self.settings = {"max_new_tokens": DEFAULTS["max_new_tokens"], **changed}
        return f"{name} is {parsed!r} now."

    def _choose(self, name: str) -> str:
        if not name:
            return f"{self.folder} holds {', '.join(snapshots.names(self.folder))}."
        try:
            self._model = snapshots.open_model(snapshots.require(self.folder, name))
        except PresetError as error:
            return str(error)
        return f"{name} answers now."


def plan_tree(generation: Generation, decode: Callable[[list[int]], str]) -> Iterator[str]:
    """What was weighed while an answer was written, and which candidate won: the places where it was not the likeliest
    one first, SHOWN_CHOICES at most. Of each candidate that the model read, what it would have gone on with."""
    plan = generation.plan
    assert plan is not None
    yield (
        f"(planned at {plan.gates:,} places: {plan.candidates:,} candidates weighed, {plan.forwards:,} calls of the "
        "model)"
    )
    others = sorted(plan.choices, key=lambda at: (plan.choices[at].chosen == 0, at))[:SHOWN_CHOICES]
    for at in sorted(others):
        choice = plan.choices[at]
        yield f"  after {decode(generation.tokens[max(0, at - SHOWN_BEFORE) : at])!r}"
        read = [number for number, one in enumerate(choice.candidates) if one.verified is not None]
        for number in read:
            one = choice.candidates[number]
            branch = "└" if number == read[-1] else "├"
            mark = "▶" if number == choice.chosen else "─"
            yield (
                f"    {branch}{mark} {decode([one.token])!r:<14} {decode(list(one.following))!r:<24} "
                f"log p {one.logprob:.2f}, score {one.verified:.2f}"
            )
        rest = ", ".join(repr(decode([one.token])) for one in choice.candidates if one.verified is None)
        if rest:
            yield f"       not read: {rest}"


def _without_length(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "max_new_tokens"}


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys, and a history of this conversation, where the terminal and this Python have them."""
    try:
        import readline
    except ImportError:
        yield
        return
    readline.set_auto_history(True)
    yield


def _read_line() -> str | None:
    """A prompt or a command; None at the end."""
    line = ask("> ")
    if line is None:
        say()
    return line if line and line.strip() else None
