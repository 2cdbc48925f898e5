"""Reads presets from configs/*.json, and writes the JSON schema with which editors complete their keys.

Whatever cannot be used raises a PresetError with a sentence that names the file, the key and the remedy.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.config.messages import explain
from engine.config.schema import Preset
from engine.errors import PresetError
from sources.readers.fields import nearest
from sources.redact import redact

CONFIGS = Path("configs")
SCHEMA_FILE = "preset.schema.json"


def preset_files(folder: Path = CONFIGS) -> list[Path]:
    """The presets in `folder`, sorted by file name, without the JSON schema beside them."""
    return sorted(path for path in folder.glob("*.json") if path.name != SCHEMA_FILE)


def load_preset(path: str | Path) -> Preset:
    """Reads one preset; its name defaults to the file's. Raises PresetError (exit status 2)."""
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_duplicates)
    except FileNotFoundError:
        problem = f"no such preset{nearest(path.name, [file.name for file in preset_files(path.parent)])}."
    except OSError as error:
        problem = f"cannot be read ({error})."
    except ValueError as error:  # not JSON, not UTF-8, or a key that appears twice
        problem = f"not valid JSON: {error}."
    except RecursionError:
        problem = "nested too deeply; a preset is sections of keys and values."
    else:
        if isinstance(values, dict):
            return parse_preset({"name": path.stem, **values}, where=str(path))
        problem = "a preset is a JSON object with the sections model, train, data and auxiliary."
    raise PresetError(f"{path}: {problem}")


def parse_preset(values: dict[str, Any], where: str = "preset") -> Preset:
    """Checks a preset's values. Raises PresetError with a sentence that begins with `where`."""
    if secret := _key_with_secret(values):  # a preset is written into every snapshot and into metrics.jsonl
        remedy = "take it out and set HF_TOKEN, or log in with hf auth login"
        raise PresetError(f"{where}: {redact(secret)}: holds a hub token or a password; {remedy}.")
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        raise PresetError(f"{where}: {explain(error, values)}") from None


def write_schema(path: Path = CONFIGS / SCHEMA_FILE) -> None:
    """Writes the JSON schema of presets; a test compares the file in configs/ with the classes."""
    path.write_text(json.dumps(Preset.model_json_schema(by_alias=True), indent=1) + "\n", encoding="utf-8")


def _key_with_secret(value: Any, key: str = "") -> str | None:
    """The dotted key of the first string that holds a secret (the key itself may be one), or None."""
    if isinstance(value, str):
        return key if redact(value) != value else None
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        inner = f"{key}.{name}" if key else str(name)
        if found := _key_with_secret(str(name), inner) or _key_with_secret(part, inner):
            return found
    return None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. json.loads silently keeps the last of two equal keys; here they raise ValueError."""
    section: dict[str, Any] = {}
    for key, value in pairs:
        if key in section:
            raise ValueError(f"the key {key!r} appears twice in one section; remove one of them")
        section[key] = value
    return section
