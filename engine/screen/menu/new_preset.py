"""The menu's `n`: a new preset from the selected one, by five questions; written as configs/NN_name.json.

An answer is checked, by the presets' own schema, while it is typed or once it is given; an empty one keeps what the
selected preset has.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import storage
from engine.config import CONFIGS, load_preset, parse_preset, preset_files
from engine.errors import PresetError
from engine.formatting import count
from engine.screen.menu.estimates import size_of
from sources.config import BUILTIN_SOURCES

Values = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One question, what an empty answer means, and what an answer makes of a preset's values.

    `change` raises ValueError, with a sentence, for an answer that cannot be used.
    """

    text: str
    default: str
    change: Callable[[Values, str], Values]
    keeps: bool = True  # the default is what the selected preset has
    shows_size: bool = False

    def note(self, values: Values, answer: str) -> str:
        """What follows from an answer that can be used; empty where nothing does."""
        if not self.shows_size:
            return ""
        preset = parse_preset(self.apply(values, answer))
        size = size_of(preset.model, preset.auxiliary, preset.data.tokenizer)
        return f"{count(size.parameters)} parameters, {preset.model.num_heads} attention heads"

    def problem(self, values: Values, answer: str) -> str:
        """Why an answer cannot be used; empty where it can."""
        try:
            parse_preset(self.apply(values, answer), where="preset")
        except (ValueError, PresetError) as error:
            return str(error).removeprefix("preset: ")
        return ""

    def apply(self, values: Values, answer: str) -> Values:
        """The values of a preset with the answer in them. Raises ValueError."""
        answer = answer.strip() or self.default
        return values if self.keeps and answer == self.default else self.change(values, answer)


Ask = Callable[[Question, Values], str]  # an answer that can be used, to a question about these values


def new_preset(base: Path, ask: Ask, folder: Path = CONFIGS) -> Path:
    """Ask the five questions and write the preset; return its file.

    Raises PresetError where the selected preset cannot be used or the new one cannot be written, and EOFError or
    KeyboardInterrupt, as `ask` does, where the person gives up; then nothing is written.
    """
    preset = load_preset(base)
    values: Values = json.loads(base.read_text(encoding="utf-8"))
    values = {**values, "name": preset.name, "description": ""}
    sources = ", ".join(preset.data.weights())
    tokenizer = preset.data.tokenizer
    vocabulary = tokenizer if isinstance(tokenizer, str) else str(tokenizer.train_bpe)
    shape, head = preset.model, preset.model.hidden_size // preset.model.num_heads
    taken = {_name(path) for path in preset_files(folder)}
    questions = (
        Question("Text: a folder, a file, OWNER/NAME of a hub dataset, or a name like wikipedia", sources, _with_text),
        Question("Tokenizer: a name, or the size of a vocabulary to train", vocabulary, _with_tokenizer),
        Question(
            "Model: WIDTHxLAYERS",
            f"{shape.hidden_size}x{shape.num_layers}",
            lambda values, answer: _with_shape(values, answer, head),
            shows_size=True,
        ),
        Question("Sequence length in tokens", str(shape.seq_length), _with_length),
        Question(
            "Name",
            _free_name(preset.name, taken),
            lambda values, answer: _with_name(values, answer, taken),
            keeps=False,
        ),
    )
    for question in questions:
        values = question.apply(values, ask(question, values))
    path = folder / f"{_next_number(folder):02d}_{re.sub(r'[^a-z0-9_]+', '_', values['name'].lower()).strip('_')}.json"
    written = {key: value for key, value in values.items() if value != ""}
    try:
        storage.write_atomic(path, (json.dumps(written, indent=2) + "\n").encode())
    except OSError as error:
        raise PresetError(f"{path} cannot be written ({storage.os_error_reason(error)}).") from None
    return path


def _with_text(values: Values, answer: str) -> Values:
    # which may name the sources that were there
    mixing = {"mix_strategy", "source_weights", "final_source_weights", "final_fraction"}
    data = {key: value for key, value in _section(values, "data").items() if key not in mixing}
    return {**values, "data": {**data, "sources": _sources(answer)}}


def _sources(answer: str) -> list[Values | str]:
    """The specifications of what a person names as text. Raises ValueError where it is none."""
    if answer in BUILTIN_SOURCES:
        return [answer]
    path = Path(answer).expanduser()
    if path.exists():
        files = _some_files(path) if path.is_dir() else [path]
        pdf = [found for found in files if found.suffix.lower() == ".pdf"]
        if not files:
            raise ValueError(f"{answer} holds no files.")
        if not pdf:
            return [{"type": "files", "path": answer}]
        papers = {"type": "pdf", "path": answer}
        return [papers] if len(pdf) == len(files) else [{"type": "files", "path": answer}, {**papers, "name": "pdf"}]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", answer) and not answer.startswith("."):
        return [{"type": "hf", "dataset": answer}]
    raise ValueError(f"no folder, file or dataset: {answer} (by name there are {', '.join(BUILTIN_SOURCES)}).")


def _some_files(folder: Path, most: int = 200) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            found.append(path)
        if len(found) == most:
            break
    return found


def _with_tokenizer(values: Values, answer: str) -> Values:
    tokenizer = {"train_bpe": int(answer)} if answer.isdecimal() else answer
    return {**values, "data": {**_section(values, "data"), "tokenizer": tokenizer}}


def _with_shape(values: Values, answer: str, head_size: int) -> Values:
    """Heads of about the size that they had: the nearest even divisor of the width."""
    match = re.fullmatch(r"(\d+)\s*[xX]\s*(\d+)", answer)
    if match is None:
        raise ValueError(f"{answer} is not WIDTHxLAYERS, as 256x3 is.")
    width, layers = int(match[1]), int(match[2])
    sizes = [size for size in range(2, min(width, 2**20) + 1, 2) if width % size == 0] or [max(1, width)]
    heads = width // min(sizes, key=lambda size: abs(size - head_size)) or 1
    model = {**_section(values, "model"), "hidden_size": width, "num_layers": layers, "num_heads": heads}
    return {**values, "model": model}


def _with_length(values: Values, answer: str) -> Values:
    if not answer.isdecimal():
        raise ValueError(f"{answer} is no number of tokens.")
    return {**values, "model": {**_section(values, "model"), "seq_length": int(answer)}}


def _with_name(values: Values, answer: str, taken: set[str]) -> Values:
    if answer in taken:
        raise ValueError(f"there is a preset {answer} already.")
    return {**values, "name": answer}


def _section(values: Mapping[str, Any], name: str) -> Values:
    return dict(values.get(name) or {})


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _name(path: Path) -> str:
    try:
        return load_preset(path).name
    except PresetError:
        return path.stem


def _next_number(folder: Path) -> int:
    """One more than the highest number that a preset's file name begins with."""
    numbers = [int(found[0]) for path in preset_files(folder) if (found := re.match(r"\d+", path.stem))]
    return max(numbers, default=-1) + 1
