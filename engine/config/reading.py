"""Reads presets from configs/*.json, and writes the JSON schema with which editors complete their keys.

Whatever cannot be used raises a PresetError with a sentence that names the file, the key and the remedy.
"""

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

import storage
from engine.config.messages import explain, explain_json, shortened
from engine.config.schema import Preset
from engine.errors import PresetError
from sources.readers.fields import nearest
from sources.redact import redact

CONFIGS = Path("configs")
SCHEMA_FILE = "preset.schema.json"
MOST_BYTES = 2**20  # of a preset
NUL = "\0"

KeyPath: TypeAlias = tuple["KeyPath | None", str]  # a key, behind the path of the object it is in


def preset_files(folder: Path = CONFIGS) -> list[Path]:
    """The presets in `folder`, sorted by file name, without the JSON schema beside them."""
    return sorted(path for path in folder.glob("*.json") if path.name != SCHEMA_FILE)


def load_preset(path: str | Path) -> Preset:
    """Reads one preset; its name defaults to the file's. Raises PresetError (exit status 2)."""
    path = Path(path)
    try:
        with storage.open_regular(path) as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {MOST_BYTES:,} bytes", str(path))
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
    except FileNotFoundError:
        problem = f"no such preset{nearest(path.name, [file.name for file in preset_files(path.parent)])}."
    except OSError as error:
        problem = f"cannot be read ({storage.os_error_reason(error)})."
    except ValueError as error:  # not JSON, not UTF-8, or a key that appears twice
        problem = f"not valid JSON: {explain_json(error)}."
    except RecursionError:
        problem = "nested too deeply; a preset is sections of keys and values."
    else:
        if isinstance(values, dict):
            return parse_preset({"name": path.stem, **values}, where=str(path))
        problem = "a preset is a JSON object with the sections model, train, data and auxiliary."
    raise PresetError(f"{path}: {problem}")


def parse_preset(values: dict[str, Any], where: str = "preset") -> Preset:
    """Checks a preset's values. Raises PresetError with a sentence that begins with `where`."""
    if key := _first_key(values, lambda text: redact(text) != text):  # presets are written into snapshots and metrics
        remedy = "take it out and set HF_TOKEN, or log in with hf auth login"
        raise PresetError(f"{where}: {redact(key)}: holds a hub token or a password; {remedy}.")
    if key := _first_key(values, lambda text: NUL in text):  # no path or name of any kind may
        raise PresetError(f"{where}: {key.replace(NUL, '')}: holds a NUL character; take it out.")
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        raise PresetError(f"{where}: {explain(error, values)}") from None


def write_schema(path: Path = CONFIGS / SCHEMA_FILE) -> None:
    """Writes the JSON schema of presets; a test compares the file in configs/ with the classes."""
    path.write_text(json.dumps(Preset.model_json_schema(by_alias=True), indent=1) + "\n", encoding="utf-8")


def _first_key(values: Any, is_bad: Callable[[str], bool]) -> str | None:
    """The dotted key of the first string that `is_bad` (the key itself may be one), or None.

    All strings are looked at together first, since a preset may have very many keys.
    """
    strings = list(_strings(values))
    if not is_bad("\n".join(text for text, _ in strings)):
        return None
    path = next((path for text, path in strings if is_bad(text)), None)
    keys: list[str] = []
    while path is not None:
        path, key = path
        keys.append(key)
    return shortened(".".join(reversed(keys))) or None


def _strings(values: Any) -> Iterator[tuple[str, "KeyPath | None"]]:
    """Every string of a preset, each with its key and the key's parents. Not by recursion: a preset may nest deeply."""
    waiting: list[tuple[Any, KeyPath | None]] = [(values, None)]
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, str):
            yield value, path
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in reversed(list(parts)):
            inner = (path, str(key))
            waiting += [(part, inner), (str(key), inner)]


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. json.loads silently keeps the last of two equal keys; here they raise ValueError."""
    section: dict[str, Any] = {}
    for key, value in pairs:
        if key in section:
            raise ValueError(f"the key {key!r} appears twice in one section; remove one of them")
        section[key] = value
    return section
